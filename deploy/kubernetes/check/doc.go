// Package check tests the manifests of deploy/kubernetes and the Terraform modules of deploy/terraform. It has tests only.
//
// It is a Go module of its own, so that the libraries of Kubernetes, kustomize and HCL are no dependencies of hsmsign. The manifests
// are rendered with the packages of kustomize v5.7.1 (sigs.k8s.io/kustomize/api v0.20.1) and compared with testdata; "make kubernetes"
// renders them with the kustomize program and writes testdata. The rendered text is decoded strictly into the types of k8s.io/api, and
// every property that deploy/kubernetes/README.md promises is a check, which a damaged manifest must fail.
package check
