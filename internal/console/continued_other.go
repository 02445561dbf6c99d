//go:build !linux && !darwin

package console

func whenContinued(func()) (stop func()) { return func() {} }

func hideInput(int) error { return nil }
