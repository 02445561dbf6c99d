package check

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

// user is the numeric user and group of the image.
const user = 65532

// podTemplates returns the pods of the overlay, by the name of what makes them.
func (m *manifests) podTemplates() map[string]*corev1.PodTemplateSpec {
	all := map[string]*corev1.PodTemplateSpec{}
	for _, d := range m.deployments {
		all["Deployment/"+d.Name] = &d.Spec.Template
	}
	for _, c := range m.cronJobs {
		all["CronJob/"+c.Name] = &c.Spec.JobTemplate.Spec.Template
	}
	return all
}

// podDefects applies the level "restricted" of Kubernetes' own Pod Security Standards, and what hsmsign asks for besides.
func (m *manifests) podDefects(report func(format string, args ...any)) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		report("%v", err)
		return
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	templates := m.podTemplates()
	if len(templates) != 2 {
		report("%d kinds of pods, want the service and the report", len(templates))
	}
	for name, pod := range templates {
		for _, result := range evaluator.EvaluatePod(restricted, &pod.ObjectMeta, &pod.Spec) {
			if !result.Allowed {
				report("%s: %s: %s", name, result.ForbiddenReason, result.ForbiddenDetail)
			}
		}
		podDefects(&pod.Spec, func(format string, args ...any) { report("%s: "+format, append([]any{name}, args...)...) })
		if account := m.accounts[pod.Spec.ServiceAccountName]; account == nil || account.AutomountServiceAccountToken == nil || *account.AutomountServiceAccountToken {
			report("%s: service account %q, which must exist and not mount its token", name, pod.Spec.ServiceAccountName)
		}
	}
}

func podDefects(spec *corev1.PodSpec, report func(format string, args ...any)) {
	if no := spec.AutomountServiceAccountToken; no == nil || *no {
		report("the pod gets a token for the API server")
	}
	if no := spec.EnableServiceLinks; no == nil || *no {
		report("Kubernetes sets variables named HSMSIGN_..., which are settings")
	}
	if s := spec.SecurityContext; s == nil || s.RunAsUser == nil || *s.RunAsUser != user || s.RunAsGroup == nil || *s.RunAsGroup != user || s.FSGroup == nil || *s.FSGroup != user {
		report("user, group and fsGroup are not %d", user)
	}
	if len(spec.Containers) != 1 || len(spec.InitContainers) != 0 {
		report("%d containers, %d init containers", len(spec.Containers), len(spec.InitContainers))
	}
	for i := range spec.Containers {
		containerDefects(&spec.Containers[i], report)
		mountDefects(spec, &spec.Containers[i], report)
	}
}

// tagged matches an image with a registry and a version or a digest.
var tagged = regexp.MustCompile(`^[a-z0-9.-]+\.[a-z]+/[a-z0-9/_-]+(:[0-9]+\.[0-9]+\.[0-9]+|@sha256:[0-9a-f]{64})$`)

func containerDefects(c *corev1.Container, report func(format string, args ...any)) {
	if s := c.SecurityContext; s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
		report("the root file system can be written")
	}
	if !tagged.MatchString(c.Image) {
		report("image %q: images: has not set it", c.Image)
	}
	if len(c.Command) > 0 || len(c.EnvFrom) > 0 {
		report("command or envFrom: the image has the program, and every variable is named")
	}
	for _, e := range c.Env {
		if e.ValueFrom != nil {
			report("%s: its value is a secret or cannot be read here", e.Name)
		}
	}
	memory, ok := c.Resources.Limits[corev1.ResourceMemory]
	limit, err := resource.ParseQuantity(strings.TrimSuffix(value(c, "GOMEMLIMIT"), "B"))
	if !ok || err != nil || limit.Value() > memory.Value()*9/10 || limit.Value() < memory.Value()/2 {
		report("GOMEMLIMIT %q for a memory limit of %s", value(c, "GOMEMLIMIT"), memory.String())
	}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		if _, ok := c.Resources.Requests[name]; !ok {
			report("no request for %s", name)
		}
	}
}

// value returns a variable of the container.
func value(c *corev1.Container, name string) string {
	for _, e := range c.Env {
		if e.Name == name {
			return e.Value
		}
	}
	return ""
}

// mountDefects: files of Secrets have the mode that hsmsign accepts, and are where it accepts it. Only an emptyDir of a bounded size
// can be written.
func mountDefects(spec *corev1.PodSpec, c *corev1.Container, report func(format string, args ...any)) {
	for _, v := range spec.Volumes {
		i := slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == v.Name })
		if i < 0 {
			report("volume %s is not mounted", v.Name)
			continue
		}
		mount := c.VolumeMounts[i]
		switch {
		case v.EmptyDir != nil:
			if v.EmptyDir.SizeLimit == nil {
				report("volume %s has no size limit", v.Name)
			}
		case v.Projected != nil:
			want, secrets := int32(0o444), false
			for _, s := range v.Projected.Sources {
				secrets = secrets || s.Secret != nil
			}
			if secrets {
				want = 0o440
			}
			if mode := v.Projected.DefaultMode; mode == nil || *mode != want || !mount.ReadOnly {
				report("volume %s: want mode %04o, read-only", v.Name, want)
			}
			if secrets != (mount.MountPath == value(c, "CREDENTIALS_DIRECTORY")) {
				report("volume %s at %s: secrets, and nothing else, belong into CREDENTIALS_DIRECTORY", v.Name, mount.MountPath)
			}
		default:
			report("volume %s is of another kind", v.Name)
		}
	}
}

// objects returns the names of Secrets and ConfigMaps that a pod needs, as "secret/NAME" and "configmap/NAME".
func objects(spec *corev1.PodSpec) (names []string) {
	for _, v := range spec.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			switch {
			case s.Secret != nil:
				names = append(names, "secret/"+s.Secret.Name)
			case s.ConfigMap != nil:
				names = append(names, "configmap/"+s.ConfigMap.Name)
			default:
				names = append(names, fmt.Sprint("other/", strconv.Quote(s.String())))
			}
		}
	}
	return names
}
