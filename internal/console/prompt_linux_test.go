package console

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hsmsign/internal/testkit"
)

// An interruption at any moment of a prompt leaves the echo on, also when reading has not begun.
func TestEchoAfterInterruption(t *testing.T) {
	master := testkit.Value(os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0))(t)
	t.Cleanup(func() { _ = master.Close() }) // ends the reads that are left
	testkit.OK(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n := testkit.Value(unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN))(t)
	slave := testkit.Value(os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0))(t)
	t.Cleanup(func() { _ = slave.Close() })
	echo := func() bool {
		return testkit.Value(unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS))(t).Lflag&unix.ECHO != 0
	}
	for i := range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		if i%2 == 0 {
			cancel()
		} else {
			time.AfterFunc(time.Duration(i)*100*time.Microsecond, cancel)
		}
		if _, err := ask(ctx, slave, "PIN: "); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		for range 1000 { // what reads may only run now
			runtime.Gosched()
		}
		if !echo() {
			t.Fatalf("after the prompt %d the echo is off", i)
		}
	}
}
