package check

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// damages change one property of a rendered overlay each. The text before is replaced everywhere.
func damages() map[string][]struct{ before, after string } {
	return map[string][]struct{ before, after string }{
		"aws": {
			{"replicas: 2", "replicas: 1"},
			{"runAsNonRoot: true", "runAsNonRoot: false"},
			{"runAsUser: 65532", "runAsUser: 1000"},
			{"fsGroup: 65532", "fsGroup: 0"},
			{"type: RuntimeDefault", "type: Unconfined"},
			{"readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"},
			{"allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true"},
			{"            - ALL\n", "            - NET_RAW\n"},
			{"automountServiceAccountToken: false", "automountServiceAccountToken: true"},
			{"enableServiceLinks: false", "enableServiceLinks: true"},
			{"defaultMode: 288", "defaultMode: 292"}, // 0440, 0444
			{"mountPath: /run/credentials/hsmsign\n", "mountPath: /run/secrets/hsmsign\n"},
			{"value: 400MiB", "value: 600MiB"},
			{"memory: 512Mi", "memory: 4Gi"},
			{"cpu: 100m", "ephemeral-storage: 1Mi"},
			{"sizeLimit: 16Mi", "medium: Memory"},
			{"image: 111122223333.dkr.ecr.eu-west-1.amazonaws.com/hsmsign:0.1.0", "image: hsmsign"},
			{"hsmsign:0.1.0", "hsmsign:latest"},
			{"maxUnavailable: 0", "maxUnavailable: 1"},
			{"topologyKey: topology.kubernetes.io/zone", "topologyKey: example.com/rack"},
			{"path: /readyz", "path: /livez"},
			{"port: metrics", "port: https"},
			{"terminationGracePeriodSeconds: 85", "terminationGracePeriodSeconds: 60"},
			{"seconds: 10\n", "seconds: 0\n"},
			{"minAvailable: 1", "minAvailable: 2"},
			{"unhealthyPodEvictionPolicy: AlwaysAllow", "unhealthyPodEvictionPolicy: IfHealthyBudget"},
			{"targetPort: https", "targetPort: metrics"},
			{"type: ClusterIP", "type: LoadBalancer"},
			{"concurrencyPolicy: Forbid", "concurrencyPolicy: Allow"},
			{"restartPolicy: Never", "restartPolicy: OnFailure"},
			{"- --notify\n", "- --json\n"},
			{"name: hsmsign-webhook", "name: hsmsign-ledger"},
			{"serviceAccountName: hsmsign-due", "serviceAccountName: hsmsign"},
			{"serviceAccountName: hsmsign-due", "serviceAccountName: default"},
			{"- 169.254.0.0/16", "- 192.0.2.0/24"},
			{"hsmsign-callers: allowed", "{}"},
			{"port: 9090", "port: 9091"},
			{"  podSelector: {}\n", "  podSelector: {matchLabels: {a: b}}\n"},
			{"app.kubernetes.io/component: due", "app.kubernetes.io/component: report"},
			{"pod-security.kubernetes.io/enforce: restricted", "pod-security.kubernetes.io/enforce: baseline"},
			{"namespace: hsmsign", "namespace: default"},
			{"eks.amazonaws.com/role-arn: arn", "eks.amazonaws.com/role: arn"},
			{"name: HSMSIGN_KEY", "name: HSMSIGN_CERT"},
		},
		"gcp": {
			{"port: 988", "port: 989"},
			{"169.254.169.254/32", "169.254.169.253/32"},
			{"name: HSMSIGN_KEY", "name: HSMSIGN_CERT"},
		},
	}
}

// TestDamage: each check sees the property that it is about.
func TestDamage(t *testing.T) {
	for overlay, list := range damages() {
		text := render(t, overlay)
		for _, d := range list {
			damaged := strings.ReplaceAll(text, d.before, d.after)
			switch found := defects(overlay, damaged); {
			case damaged == text:
				t.Errorf("%s: nothing is %q", overlay, d.before)
			case d.before == "app.kubernetes.io/component: due": // both sides of the selectors change together
				if len(found) > 0 {
					t.Errorf("%s: another label is no defect: %v", overlay, found)
				}
			case len(found) == 0:
				t.Errorf("%s: %q instead of %q is accepted", overlay, d.after, d.before)
			}
		}
	}
}

// TestReadme: README.md names what has to be made in the cluster, and nothing else.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, overlay := range overlays() {
		m, err := decode(render(t, overlay))
		if err != nil {
			t.Fatal(err)
		}
		var needed []string
		for _, pod := range m.podTemplates() {
			needed = append(needed, objects(&pod.Spec)...)
		}
		slices.Sort(needed)
		for _, name := range slices.Compact(needed) {
			kind, name, _ := strings.Cut(name, "/")
			if kind == "configmap" && m.names["ConfigMap/"+name] {
				continue
			}
			if command := "kubectl -n hsmsign create " + map[string]string{"secret": "secret generic ", "configmap": "configmap "}[kind] + name + " "; !strings.Contains(string(text), command) {
				t.Errorf("README.md does not have %q", command)
			}
		}
	}
}
