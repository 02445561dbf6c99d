//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/goccy/go-yaml"
	"github.com/urfave/cli/v2"

	"hsmsign/internal/servicekit"
	"hsmsign/internal/testkit"
	"hsmsign/ledger/postgres/postgrestest"
	"hsmsign/server/notify/notifytest"
	"hsmsign/signer/awskms/awskmstest"
	"hsmsign/signer/gcpkms/gcpkmstest"
)

// podUser is the user of the image, and the fsGroup of the pods.
const podUser = 65532

// podSpec is what the tests read of a pod's specification; deploy/kubernetes/check decodes all of it.
type podSpec struct {
	Containers []struct {
		Args         []string
		Env          []struct{ Name, Value string }
		VolumeMounts []struct {
			Name      string
			MountPath string `yaml:"mountPath"`
		} `yaml:"volumeMounts"`
	}
	Volumes []struct {
		Name      string
		Projected *struct {
			DefaultMode os.FileMode `yaml:"defaultMode"`
			Sources     []struct {
				ConfigMap struct{ Name string } `yaml:"configMap"`
				Secret    struct{ Name string }
			}
		}
	}
}

// rendered are the two kinds of pods of an overlay, and the text of hsmsign.yaml.
type rendered struct{ service, due podSpec }

// readRendered reads deploy/kubernetes/check/testdata/OVERLAY.yaml. objects gets the content of its ConfigMap.
func readRendered(t *testing.T, overlay string, objects map[string]map[string]string) (r rendered) {
	t.Helper()
	text := testkit.Value(os.ReadFile(filepath.Join("..", "..", "deploy", "kubernetes", "check", "testdata", overlay+".yaml")))(t)
	type template struct{ Template struct{ Spec podSpec } }
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		var object struct {
			Kind     string
			Metadata struct{ Name string }
			Data     map[string]string
			Spec     struct {
				Template    struct{ Spec podSpec }
				JobTemplate struct{ Spec template } `yaml:"jobTemplate"`
			}
		}
		testkit.OK(t, yaml.Unmarshal([]byte(document), &object))
		switch object.Kind {
		case "Deployment":
			r.service = object.Spec.Template.Spec
		case "CronJob":
			r.due = object.Spec.JobTemplate.Spec.Template.Spec
		case "ConfigMap":
			objects[object.Metadata.Name] = object.Data
		}
	}
	if len(r.service.Containers) != 1 || len(r.due.Containers) != 1 {
		t.Fatalf("%s: no pods", overlay)
	}
	return r
}

// pod is a container that runs as a process of this host: the paths of its mounts are replaced by those of folders.
type pod struct {
	dir, program string
	args, env    []string
	paths        *strings.Replacer
}

// newPod makes the volumes of a pod as the kubelet does, with ConfigMaps and Secrets of these contents. Files belong to root and the
// fsGroup and have the default mode of the volume, to which fsGroup adds 0440; each is a link to a file below a folder that ..data
// names. If the test does not run as root, they belong to the user of the test, and the program runs as that user.
func newPod(t *testing.T, spec podSpec, objects map[string]map[string]string) *pod {
	t.Helper()
	p := &pod{dir: testkit.Value(os.MkdirTemp("", "hsmsign-pod-"))(t)} // not t.TempDir: other users cannot look into it
	t.Cleanup(func() { _ = os.RemoveAll(p.dir) })
	testkit.OK(t, os.Chmod(p.dir, 0o711)) // #nosec G302 -- the program runs as another user
	p.program = filepath.Join(p.dir, "hsmsign")
	testkit.OK(t, os.WriteFile(p.program, testkit.Value(os.ReadFile(os.Args[0]))(t), 0o755)) // #nosec G306 -- it is run
	container := spec.Containers[0]
	var replace []string
	for _, m := range container.VolumeMounts {
		replace = append(replace, m.MountPath, filepath.Join(p.dir, m.Name))
	}
	p.paths = strings.NewReplacer(replace...)
	for _, v := range spec.Volumes {
		dir := filepath.Join(p.dir, v.Name)
		testkit.OK(t, os.Mkdir(dir, 0o700))
		testkit.OK(t, os.Chmod(dir, 0o777|os.ModeSticky)) // #nosec G302 -- as an emptyDir is
		if v.Projected == nil {
			continue
		}
		data := filepath.Join(dir, "..2026_11_22")
		testkit.OK(t, os.Mkdir(data, 0o755)) // #nosec G301 -- as the kubelet does
		testkit.OK(t, os.Symlink(filepath.Base(data), filepath.Join(dir, "..data")))
		for _, source := range v.Projected.Sources {
			content, ok := objects[source.ConfigMap.Name+source.Secret.Name]
			if !ok {
				t.Fatalf("there is no %q", source.ConfigMap.Name+source.Secret.Name)
			}
			for name, text := range content {
				file := filepath.Join(data, name)
				testkit.OK(t, os.WriteFile(file, []byte(p.paths.Replace(text)), 0o600))
				testkit.OK(t, os.Chmod(file, v.Projected.DefaultMode|0o440))
				testkit.OK(t, os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)))
				if os.Getuid() == 0 {
					testkit.OK(t, os.Chown(file, 0, podUser))
				}
			}
		}
	}
	for _, e := range container.Env {
		p.env = append(p.env, e.Name+"="+p.paths.Replace(e.Value))
	}
	for _, a := range container.Args {
		p.args = append(p.args, p.paths.Replace(a))
	}
	return p
}

// command is the program in the pod: the variables of the container and no others, and its user if the test may become that user.
func (p *pod) command(ctx context.Context, env []string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.program, args...) // #nosec G204 -- a test's own arguments
	cmd.Dir, cmd.Env = "/", append(append([]string{"PATH=/usr/bin", "HOME=/nonexistent"}, p.env...), env...)
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: podUser, Gid: podUser}}
	}
	return cmd
}

// cluster is what the pods of a test use: a database with its two roles, and the objects that README.md tells to create.
type cluster struct {
	store   string // of the role that signs
	objects map[string]map[string]string
	ca      *testkit.CA
	caller  tls.Certificate
}

// newDatabase starts a server in which the role signer has a password.
func newDatabase(t *testing.T) (db *postgrestest.Server, password string) {
	t.Helper()
	db = testkit.Value(postgrestest.Start("log_checkpoints = off"))(t) // with a setting it is always a server of its own
	t.Cleanup(db.Stop)
	base := db.Schema(t)
	folder := testkit.Value(url.Parse(base))(t).Query().Get("host")
	testkit.OK(t, os.Chmod(folder, 0o711)) // #nosec G302 -- the pods connect to a socket in it
	hba := filepath.Join(folder, "data", "pg_hba.conf")
	testkit.OK(t, os.WriteFile(hba, append([]byte("local all signer scram-sha-256\n"), testkit.Value(os.ReadFile(hba))(t)...), 0o600))
	conn := testkit.Value(sql.Open("pgx", base))(t)
	defer func() { _ = conn.Close() }() // nothing is kept
	password = rand.Text()
	for _, statement := range []string{"CREATE ROLE signer LOGIN PASSWORD '" + password + "'", "SELECT pg_reload_conf()"} {
		_, err := conn.ExecContext(t.Context(), statement)
		testkit.OK(t, err)
	}
	return db, password
}

// newCluster follows "Before the first start" of deploy/kubernetes/README.md.
func newCluster(t *testing.T, db *postgrestest.Server, password string) *cluster {
	t.Helper()
	owner := db.Schema(t)
	u := testkit.Value(url.Parse(owner))(t)
	u.User = url.User("signer")
	c := &cluster{store: u.String(), ca: testkit.NewCA(t, "cluster")}
	c.caller = c.ca.Issue(t, "backend", nil)
	dir := t.TempDir()
	run := func(args ...string) string {
		cmd := exec.CommandContext(t.Context(), programFile(t), args...) // #nosec G204 -- a test's own arguments
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "HSMSIGN_LEDGER="+owner, "HSMSIGN_CHECKPOINT_KEY=checkpoint.key", "HSMSIGN_LAST_CHECKPOINT=last")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
		return string(out)
	}
	_, verifier, _ := strings.Cut(run("ledger", "init", "--origin", "example.com/mdm"), "verifier key: ")
	verifier, _, _ = strings.Cut(verifier, "\n")
	run("ledger", "migrate", "--grant", "signer")
	cert, key := testkit.PEM(t, c.ca.Issue(t, "server", nil))
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.ca.Cert.Raw})
	c.objects = map[string]map[string]string{
		"hsmsign-files":    {"vendor.pem": string(testkit.File(t, "golden/chain.pem")), "ledger.pub": verifier + "\n", "postgres-ca.pem": string(authority)},
		"hsmsign-tls":      {"tls.crt": string(cert), "tls.key": string(key)},
		"hsmsign-ledger":   {"checkpoint.key": string(testkit.Value(os.ReadFile(filepath.Join(dir, "checkpoint.key")))(t))},
		"hsmsign-database": {"pgpass": "*:*:*:signer:" + password + "\n"},
		"hsmsign-webhook":  {"webhook": notifytest.Secret + "\n"},
	}
	return c
}

// TestKubernetes starts what deploy/kubernetes renders, with the files, modes, owners and variables that the pods have: check-config,
// the service until it has signed and ended, and the daily report.
func TestKubernetes(t *testing.T) {
	t.Parallel()
	db, password := newDatabase(t)
	for overlay, double := range map[string]func(t *testing.T, ref string) (endpoint string, env []string){"aws": awsInCluster, "gcp": gcpInCluster} {
		t.Run(overlay, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, db, password)
			r := readRendered(t, overlay, c.objects)
			https, metrics := freePort(t), freePort(t)
			cert := c.ca.Issue(t, "hooks", nil)
			hook := notifytest.NewWebhook(&cert)
			t.Cleanup(hook.Stop)
			for name, data := range c.objects {
				if strings.HasPrefix(name, "hsmsign-config-") {
					data["hsmsign.yaml"] = replaced(t, data["hsmsign.yaml"], "postgres://signer@postgres.example.com/hsmsign?sslmode=verify-full&sslrootcert=/etc/hsmsign/postgres-ca.pem", c.store,
						"0.0.0.0:8443", https, "0.0.0.0:9090", metrics, strings.Repeat("0", 64), servicekit.Pin(c.caller),
						`url: "https://hooks.example.com/hsmsign"`, `ca: /etc/hsmsign/postgres-ca.pem, url: "`+hook.URL+`"`)
				}
			}
			p := newPod(t, r.service, c.objects)
			root := filepath.Join(p.dir, "root.pem")
			testkit.OK(t, os.WriteFile(root, testkit.File(t, "golden/root.pem"), 0o644)) // #nosec G306 -- a certificate
			for i, v := range p.env {
				if ref, ok := strings.CutPrefix(v, "HSMSIGN_KEY="); ok {
					endpoint, env := double(t, ref)
					p.env[i] = v + "&endpoint=" + endpoint
					p.env = append(p.env, env...)
				}
			}
			p.env = append(p.env, "HSMSIGN_TRUST_ROOT="+root)
			p.serves(t, c, https, metrics)
			due := newPod(t, r.due, c.objects)
			due.env = append(due.env, "HSMSIGN_TRUST_ROOT="+root)
			due.reports(t, hook)
		})
	}
}

// replaced replaces texts that must be there.
func replaced(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("the configuration does not contain %q", pairs[i])
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text
}

func freePort(t *testing.T) string {
	t.Helper()
	l := testkit.Value(net.Listen("tcp", "127.0.0.1:0"))(t)
	testkit.OK(t, l.Close())
	return l.Addr().String()
}

// awsInCluster starts a double with the key of a reference, and returns its endpoint and the credentials that the pod's token would give.
func awsInCluster(t *testing.T, ref string) (endpoint string, env []string) {
	name, _, _ := strings.Cut(strings.TrimPrefix(ref, "awskms:///"), "?")
	server := testkit.Value(awskmstest.NewServer(awskmstest.Config{}))(t)
	t.Cleanup(func() { _ = server.Close() })
	testkit.Value(server.AddKey(name, testkit.GoldenKey(t)))(t)
	return server.Endpoint(), []string{"AWS_ACCESS_KEY_ID=" + awskmstest.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + awskmstest.SecretAccessKey}
}

func gcpInCluster(t *testing.T, ref string) (endpoint string, env []string) {
	name, _, _ := strings.Cut(strings.TrimPrefix(ref, "gcpkms://"), "?")
	server := testkit.Value(gcpkmstest.NewServer(gcpkmstest.Config{}))(t)
	t.Cleanup(func() { _ = server.Close() })
	testkit.Value(server.Add(gcpkmstest.Key{Name: name, Private: testkit.GoldenKey(t), Algorithm: kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256}))(t)
	return server.Endpoint(), []string{"GOOGLE_CLOUD_PROJECT=" + strings.Split(name, "/")[1]}
}

// serves checks the configuration, and starts the service, asks it for a request and ends it.
func (p *pod) serves(t *testing.T, c *cluster, https, metrics string) {
	t.Helper()
	if out, err := p.command(t.Context(), nil, "check-config", p.args[1], p.args[2]).CombinedOutput(); err != nil || bytes.Contains(out, []byte("warning")) {
		t.Fatalf("check-config: %v\n%s", err, out)
	}
	// Without the variable the modes of the files are refused: that is why the manifests set it.
	out, err := p.command(t.Context(), []string{"CREDENTIALS_DIRECTORY=/nonexistent"}, p.args...).CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("mode 0440")) {
		t.Fatalf("without CREDENTIALS_DIRECTORY: %v\n%s", err, out)
	}
	var log bytes.Buffer // read when the process has ended
	cmd := p.command(context.Background(), nil, p.args...)
	cmd.Stderr = &log
	testkit.OK(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // it has ended, if all went well
	testkit.Eventually(t, "the service is ready", func() bool {
		select {
		case err := <-ended:
			t.Fatalf("the service ended: %v\n%s", err, &log)
		default:
		}
		r, err := http.Get("http://" + metrics + "/readyz")
		if err != nil {
			return false
		}
		_ = r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
	roots := x509.NewCertPool()
	roots.AddCert(c.ca.Cert)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{c.caller}}}
	r := testkit.Value((&http.Client{Transport: transport}).Post("https://"+https+"/v1/requests?customer=acme", "application/pkcs10", bytes.NewReader(testkit.File(t, "golden/customer.csr"))))(t)
	body := testkit.Value(io.ReadAll(r.Body))(t)
	_ = r.Body.Close()
	transport.CloseIdleConnections()
	if r.StatusCode != http.StatusOK || !bytes.Equal(body, testkit.File(t, "golden/customer.req")) {
		t.Errorf("status %d, %d bytes, which are not the golden request", r.StatusCode, len(body))
	}
	testkit.OK(t, cmd.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the service ended with %v\n%s", err, &log)
		}
	case <-time.After(time.Minute):
		t.Fatal("the service does not end")
	}
	if info, err := os.Stat(p.paths.Replace("/var/lib/hsmsign/ledger.last")); err != nil || info.Size() == 0 {
		t.Errorf("the last checkpoint was not written: %v", err)
	}
}

// reports runs the daily report: the issued request is due, and the webhook gets the message, signed with the secret of the pod.
func (p *pod) reports(t *testing.T, hook *notifytest.Webhook) {
	t.Helper()
	args, want, calls := p.args, "<nil>", 1
	if !slices.ContainsFunc((&program{}).dueCommand().Flags, func(f cli.Flag) bool { return f.Names()[0] == "notify" }) {
		// Exit code 3 is that of a report which nobody was sent.
		args, want, calls = slices.DeleteFunc(slices.Clone(args), func(a string) bool { return a == "--notify" }), "exit status 3", 0
	}
	out, err := p.command(t.Context(), nil, args...).CombinedOutput()
	if status := fmt.Sprint(err); status != want || !bytes.Contains(out, []byte("not redeemed")) {
		t.Errorf("%v: %v\n%s", args, err, out)
	}
	if n := len(hook.Calls()); n != calls {
		t.Errorf("the webhook was called %d times, want %d", n, calls)
	}
}
