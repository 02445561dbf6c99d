package check

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// selects returns whether a selector is not empty and selects the pods of a template.
func selects(s *metav1.LabelSelector, pod *corev1.PodTemplateSpec) bool {
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && !selector.Empty() && selector.Matches(labels.Set(pod.Labels))
}

func (m *manifests) deploymentDefects(report func(format string, args ...any)) {
	if len(m.deployments) != 1 || len(m.cronJobs) != 1 || len(m.budgets) != 1 || len(m.services) != 1 {
		report("%d deployments, %d cron jobs, %d budgets, %d services", len(m.deployments), len(m.cronJobs), len(m.budgets), len(m.services))
		return
	}
	d := m.deployments[0]
	if d.Spec.Replicas == nil || *d.Spec.Replicas != 2 || !selects(d.Spec.Selector, &d.Spec.Template) {
		report("want two replicas of the selected pods")
	}
	rolling := d.Spec.Strategy.RollingUpdate
	if d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType || rolling == nil || rolling.MaxUnavailable == nil || *rolling.MaxUnavailable != intstr.FromInt32(0) {
		report("an update ends a pod before the next one is ready")
	}
	spread := d.Spec.Template.Spec.TopologySpreadConstraints
	for _, key := range []string{"kubernetes.io/hostname", "topology.kubernetes.io/zone"} {
		if !slices.ContainsFunc(spread, func(c corev1.TopologySpreadConstraint) bool {
			return c.TopologyKey == key && selects(c.LabelSelector, &d.Spec.Template)
		}) {
			report("the replicas are not spread over %s", key)
		}
	}
	probeDefects(&d.Spec.Template.Spec, report)
	b := m.budgets[0]
	if b.Spec.MinAvailable == nil || *b.Spec.MinAvailable != intstr.FromInt32(1) || !selects(b.Spec.Selector, &d.Spec.Template) {
		report("the disruption budget does not keep one pod of the service")
	}
	if p := b.Spec.UnhealthyPodEvictionPolicy; p == nil || *p != policyv1.AlwaysAllow {
		report("pods that do not sign block the drain of a node")
	}
	s := m.services[0]
	if len(s.Spec.Selector) == 0 || !labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(d.Spec.Template.Labels)) {
		report("the Service does not select the pods")
	}
	if s.Spec.Type != corev1.ServiceTypeClusterIP || len(s.Spec.Ports) != 1 || s.Spec.Ports[0].TargetPort != intstr.FromString("https") {
		report("the Service publishes something else than the port https inside the cluster")
	}
	cronDefects(m.cronJobs[0], report)
}

func probeDefects(spec *corev1.PodSpec, report func(format string, args ...any)) {
	c := &spec.Containers[0]
	for path, probes := range map[string][]*corev1.Probe{"/livez": {c.StartupProbe, c.LivenessProbe}, "/readyz": {c.ReadinessProbe}} {
		for _, p := range probes {
			if p == nil || p.HTTPGet == nil || p.HTTPGet.Path != path || p.HTTPGet.Port != intstr.FromString("metrics") || p.HTTPGet.Scheme == corev1.URISchemeHTTPS {
				report("a probe does not ask %s of the port metrics", path)
			}
		}
	}
	if c.Lifecycle == nil || c.Lifecycle.PreStop == nil || c.Lifecycle.PreStop.Sleep == nil || spec.TerminationGracePeriodSeconds == nil {
		report("no pause before SIGTERM, or no grace period")
		return
	}
	pause, grace := time.Duration(c.Lifecycle.PreStop.Sleep.Seconds)*time.Second, time.Duration(*spec.TerminationGracePeriodSeconds)*time.Second
	if drain, err := drainTime(); err != nil || pause < 5*time.Second || grace < pause+drain+5*time.Second {
		report("grace period %v, with a pause of %v and a drain of %v (%v)", grace, pause, drain, err)
	}
}

// drainTime is how long the service finishes what it has begun, as docs/service.md says; a test of the server compares that.
func drainTime() (time.Duration, error) {
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "service.md"))
	if err != nil {
		return 0, err
	}
	row := regexp.MustCompile(`\n\| drain after SIGTERM \| ([0-9ms]+) \|\n`).FindSubmatch(text)
	if row == nil {
		return 0, fmt.Errorf("docs/service.md does not say how long a drain takes")
	}
	return time.ParseDuration(string(row[1]))
}

func cronDefects(c *batchv1.CronJob, report func(format string, args ...any)) {
	job := c.Spec.JobTemplate.Spec
	pod := &job.Template.Spec
	if c.Spec.TimeZone == nil || c.Spec.ConcurrencyPolicy != batchv1.ForbidConcurrent || job.ActiveDeadlineSeconds == nil || job.BackoffLimit == nil || pod.RestartPolicy != corev1.RestartPolicyNever {
		report("the report can run twice, for ever or again and again")
	}
	if args := strings.Join(pod.Containers[0].Args, " "); !strings.HasPrefix(args, "ledger due --notify ") {
		report("the report runs hsmsign %s", args)
	}
	for _, name := range objects(pod) {
		if name == "secret/hsmsign-ledger" || name == "secret/hsmsign-tls" {
			report("the report gets %s, which it does not need", name)
		}
	}
	if value(&pod.Containers[0], "HSMSIGN_KEY") != "" || pod.ServiceAccountName == "hsmsign" {
		report("the report has the identity that signs")
	}
}

// networkDefects: everything is denied but what is named, and nothing named is everything.
func (m *manifests) networkDefects(report func(format string, args ...any)) {
	denied := false
	for _, p := range m.policies {
		if len(p.Spec.PodSelector.MatchLabels)+len(p.Spec.PodSelector.MatchExpressions) == 0 {
			denied = denied || len(p.Spec.PolicyTypes) == 2 && len(p.Spec.Ingress)+len(p.Spec.Egress) == 0
		}
		for _, rule := range p.Spec.Ingress {
			ruleDefects(p.Name+" ingress", rule.From, rule.Ports, report)
		}
		for _, rule := range p.Spec.Egress {
			ruleDefects(p.Name+" egress", rule.To, rule.Ports, report)
		}
	}
	if !denied {
		report("no policy denies what is not named")
	}
	for name, want := range map[string][2]string{"Deployment/hsmsign": {"8443 9090", "53 53 5432 443"}, "CronJob/hsmsign-due": {"", "53 53 5432 443"}} {
		pod := m.podTemplates()[name]
		i := slices.IndexFunc(m.policies, func(p *networkingv1.NetworkPolicy) bool { return pod != nil && selects(&p.Spec.PodSelector, pod) })
		if i < 0 {
			report("no policy selects %s", name)
			continue
		}
		var in, out []string
		for _, rule := range m.policies[i].Spec.Ingress {
			in = append(in, ports(rule.Ports)...)
		}
		for _, rule := range m.policies[i].Spec.Egress {
			out = append(out, ports(rule.Ports)...)
		}
		if got := strings.Join(in, " "); got != want[0] || !strings.HasPrefix(strings.Join(out, " "), want[1]) {
			report("%s: ports in %q, out %q", name, got, out)
		}
	}
}

func ports(all []networkingv1.NetworkPolicyPort) (texts []string) {
	for _, p := range all {
		texts = append(texts, p.Port.String())
	}
	return texts
}

func ruleDefects(name string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort, report func(format string, args ...any)) {
	if len(peers) == 0 || len(ports) == 0 {
		report("%s: a rule without peers or without ports allows everything", name)
	}
	for _, peer := range peers {
		if peer.NamespaceSelector != nil && len(peer.NamespaceSelector.MatchLabels) == 0 {
			report("%s: every namespace", name)
		}
		if peer.IPBlock == nil && peer.NamespaceSelector == nil {
			report("%s: a peer without a namespace", name)
		}
		if b := peer.IPBlock; b != nil && strings.HasSuffix(b.CIDR, "/0") && !slices.Contains(b.Except, "169.254.0.0/16") {
			report("%s: the credentials of the node can be reached", name)
		}
	}
}

// overlayDefects: what an overlay adds.
func (m *manifests) overlayDefects(overlay string, report func(format string, args ...any)) {
	if len(m.namespaces) != 1 || !m.namespaces["hsmsign"] || m.namespace.Name != "hsmsign" || m.namespace.Labels["pod-security.kubernetes.io/enforce"] != "restricted" {
		report("namespaces %v; want hsmsign, which enforces the level restricted", m.namespaces)
	}
	var key string
	for _, d := range m.deployments {
		key = value(&d.Spec.Template.Spec.Containers[0], "HSMSIGN_KEY")
	}
	account := m.accounts["hsmsign"]
	switch overlay {
	case "aws":
		role := regexp.MustCompile(`^arn:aws:iam::[0-9]{12}:role/[a-z]+$`)
		if account == nil || !role.MatchString(account.Annotations["eks.amazonaws.com/role-arn"]) || !strings.HasPrefix(key, "awskms:///") {
			report("no role for the service account, or no key in AWS KMS: %q", key)
		}
	case "gcp":
		if account == nil || len(account.Annotations) > 0 || !strings.HasPrefix(key, "gcpkms://projects/") {
			report("the service account is somebody else, or there is no key in Cloud KMS: %q", key)
		}
		if !m.reaches("169.254.169.254/32", 80) || !m.reaches("169.254.169.252/32", 988) {
			report("the metadata server, which issues the pod's token, is out of reach")
		}
	}
}

// reaches returns whether the service may send to a network.
func (m *manifests) reaches(cidr string, port int32) bool {
	for _, p := range m.policies {
		for _, rule := range p.Spec.Egress {
			if p.Name == "hsmsign" && slices.ContainsFunc(rule.To, func(peer networkingv1.NetworkPolicyPeer) bool {
				return peer.IPBlock != nil && peer.IPBlock.CIDR == cidr
			}) &&
				slices.ContainsFunc(rule.Ports, func(p networkingv1.NetworkPolicyPort) bool { return p.Port.IntVal == port }) {
				return true
			}
		}
	}
	return false
}

// defects returns everything that is wrong with a rendered overlay.
func defects(overlay, text string) (all []string) {
	m, err := decode(text)
	if err != nil {
		return []string{err.Error()}
	}
	report := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	m.podDefects(report)
	m.deploymentDefects(report)
	m.networkDefects(report)
	m.overlayDefects(overlay, report)
	return all
}

func TestOverlays(t *testing.T) {
	for _, overlay := range overlays() {
		for _, d := range defects(overlay, render(t, overlay)) {
			t.Errorf("%s: %s", overlay, d)
		}
	}
}
