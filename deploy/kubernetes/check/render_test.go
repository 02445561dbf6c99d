package check

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// overlays are the folders of ../overlays.
func overlays() []string { return []string{"aws", "gcp"} }

// render returns what "kustomize build" prints for an overlay.
func render(t *testing.T, overlay string) string {
	t.Helper()
	options := krusty.MakeDefaultOptions()
	options.Reorder = krusty.ReorderOptionLegacy // as the program does
	built, err := krusty.MakeKustomizer(options).Run(filesys.MakeFsOnDisk(), filepath.Join("..", "overlays", overlay))
	if err != nil {
		t.Fatal(err)
	}
	text, err := built.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// manifests are the objects of one overlay, by kind.
type manifests struct {
	names       map[string]bool // "KIND/NAME"
	namespaces  map[string]bool // of the objects that are in one
	namespace   corev1.Namespace
	accounts    map[string]*corev1.ServiceAccount
	configs     []*corev1.ConfigMap
	services    []*corev1.Service
	policies    []*networkingv1.NetworkPolicy
	deployments []*appsv1.Deployment
	cronJobs    []*batchv1.CronJob
	budgets     []*policyv1.PodDisruptionBudget
}

// decode reads rendered manifests into the types of k8s.io/api. A field that the type does not have, a field that is there twice,
// and a kind that no overlay needs, are errors. A Secret is one: secrets are made in the cluster.
func decode(text string) (*manifests, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, appsv1.AddToScheme, batchv1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	m := &manifests{names: map[string]bool{}, namespaces: map[string]bool{}, accounts: map[string]*corev1.ServiceAccount{}}
	for document := range strings.SplitSeq(text, "\n---\n") {
		object, kind, err := decoder.Decode([]byte(document), nil, nil)
		if err != nil {
			return nil, fmt.Errorf("%w in\n%s", err, document)
		}
		if err := m.add(object); err != nil {
			return nil, err
		}
		meta := object.(metav1.Object)
		name := kind.Kind + "/" + meta.GetName()
		if m.names[name] {
			return nil, fmt.Errorf("%s is there twice", name)
		}
		m.names[name] = true
		if kind.Kind != "Namespace" {
			m.namespaces[meta.GetNamespace()] = true
		}
	}
	return m, nil
}

func (m *manifests) add(object runtime.Object) error {
	switch o := object.(type) {
	case *corev1.Namespace:
		m.namespace = *o
	case *corev1.ServiceAccount:
		m.accounts[o.Name] = o
	case *corev1.ConfigMap:
		m.configs = append(m.configs, o)
	case *corev1.Service:
		m.services = append(m.services, o)
	case *networkingv1.NetworkPolicy:
		m.policies = append(m.policies, o)
	case *appsv1.Deployment:
		m.deployments = append(m.deployments, o)
	case *batchv1.CronJob:
		m.cronJobs = append(m.cronJobs, o)
	case *policyv1.PodDisruptionBudget:
		m.budgets = append(m.budgets, o)
	default:
		return fmt.Errorf("%T: the overlays have no object of this kind", object)
	}
	return nil
}

// TestRender: testdata is what kustomize renders. The tests of the program start it as these files say.
func TestRender(t *testing.T) {
	for _, overlay := range overlays() {
		want, err := os.ReadFile(filepath.Join("testdata", overlay+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		if got := render(t, overlay); !bytes.Equal([]byte(got), want) {
			t.Errorf("overlays/%s is not testdata/%s.yaml any more: run make kubernetes, and read the difference", overlay, overlay)
		}
	}
}

// TestStrict: a misspelled field, a wrong type, a repeated field and an unknown kind are refused.
func TestStrict(t *testing.T) {
	text := render(t, "aws")
	for _, damage := range [][2]string{
		{"readOnlyRootFilesystem: true", "readonlyRootFilesystem: true"},
		{"replicas: 2", `replicas: "two"`},
		{"replicas: 2", "replicas: 2\n  replicas: 3"},
		{"kind: PodDisruptionBudget", "kind: PodDisruption"},
		{"kind: Service\n", "kind: Secret\n"},
	} {
		damaged := strings.Replace(text, damage[0], damage[1], 1)
		if _, err := decode(damaged); damaged == text || err == nil {
			t.Errorf("%q instead of %q is accepted", damage[1], damage[0])
		}
	}
}
