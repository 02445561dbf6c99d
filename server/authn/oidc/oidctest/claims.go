package oidctest

import (
	"maps"
	"time"
)

// The tenant and the identity of Claims of the kind "entra".
const (
	Tenant   = "aaaabbbb-0000-cccc-1111-dddd2222eeee"
	ObjectID = "aaaaaaaa-0000-1111-2222-bbbbbbbbbbbb"
)

// ServiceAccount is the uid of the service account in Claims of the kind "kubernetes".
const ServiceAccount = "14ee3fa4-a7e2-420f-9f9a-dbc4507c3798"

// Claims returns the claims of a token of a kind of issuer, with the names and the JSON types that the issuer sends: github (a job
// on the branch main in the environment production), gitlab (a job on a protected branch), kubernetes (a projected token), entra (a
// managed identity, version 2.0) or google (a service account on a machine, format=full). Another kind has sub only.
func Claims(kind, issuer, audience string, now time.Time) map[string]any {
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	claims := map[string]any{"iss": issuer, "aud": audience, "iat": at(0), "exp": at(time.Hour)}
	switch kind {
	case "github":
		claims["nbf"], claims["exp"] = at(-10*time.Minute), at(5*time.Minute)
		maps.Copy(claims, github)
	case "gitlab":
		claims["nbf"] = at(-5 * time.Second)
		maps.Copy(claims, gitlab)
	case "kubernetes":
		claims["nbf"], claims["aud"] = at(0), []string{audience}
		claims["jti"], claims["sub"] = "ea28ed49-2e11-4280-9ec5-bc3d1d84661a", "system:serviceaccount:build:signer"
		claims["kubernetes.io"] = map[string]any{
			"namespace":      "build",
			"node":           map[string]any{"name": "127.0.0.1", "uid": "58456cb0-dd00-45ed-b797-5578fdceaced"},
			"pod":            map[string]any{"name": "signer-69cbfb9798-jv9gn", "uid": "778a530c-b3f4-47c0-9cd5-ab018fb64f33"},
			"serviceaccount": map[string]any{"name": "signer", "uid": ServiceAccount},
			"warnafter":      at(50 * time.Minute),
		}
	case "entra":
		claims["nbf"], claims["exp"] = at(0), at(24*time.Hour)
		maps.Copy(claims, entra)
	case "google":
		maps.Copy(claims, google)
	default:
		claims["sub"] = "service-7"
	}
	return claims
}

var github = map[string]any{
	"jti": "example-id", "sub": "repo:octo-org/octo-repo:environment:production", "environment": "production", "ref": "refs/heads/main",
	"sha": "c040cae0f0dc81641728557b80f09cfa23b83fe5", "repository": "octo-org/octo-repo", "repository_owner": "octo-org", "actor_id": "12",
	"repository_visibility": "private", "repository_id": "74", "repository_owner_id": "65", "run_id": "22259804324", "run_number": "10", "run_attempt": "2",
	"runner_environment": "github-hosted", "actor": "octocat", "workflow": "release", "head_ref": "", "base_ref": "", "event_name": "workflow_dispatch",
	"ref_type": "branch", "ref_protected": "true", "job_workflow_ref": "octo-org/octo-repo/.github/workflows/release.yml@refs/heads/main",
	"job_workflow_sha": "c040cae0f0dc81641728557b80f09cfa23b83fe5", "workflow_ref": "octo-org/octo-repo/.github/workflows/release.yml@refs/heads/main",
	"workflow_sha": "c040cae0f0dc81641728557b80f09cfa23b83fe5",
}

var gitlab = map[string]any{
	"namespace_id": "72", "namespace_path": "my-group", "project_id": "20", "project_path": "my-group/my-project", "user_id": "1", "user_login": "sample-user",
	"user_email": "sample-user@example.com", "user_identities": []any{map[string]any{"provider": "github", "extern_uid": "2435223452345"}}, "pipeline_id": "574",
	"pipeline_source": "push", "job_id": "302", "ref": "main", "ref_type": "branch", "ref_path": "refs/heads/main", "ref_protected": "true",
	"environment": "production", "environment_protected": "true", "deployment_tier": "production", "environment_action": "start", "runner_id": 1,
	"runner_environment": "self-hosted", "sha": "714a629c0b401fdce83e847fc9589983fc6f46bc", "project_visibility": "private",
	"ci_config_ref_uri": "gitlab.example.com/my-group/my-project//.gitlab-ci.yml@refs/heads/main", "jti": "235b3a54-b797-45c7-ae9a-f72d7bc6ef5b",
	"sub": "project_path:my-group/my-project:ref_type:branch:ref:main",
}

var entra = map[string]any{
	"aio": "k2RgYPjXsOJOyI5DRfs2V0S9BAA=", "azp": "00001111-aaaa-2222-bbbb-3333cccc4444", "azpacr": "2", "idtyp": "app", "oid": ObjectID, "rh": "1.AXMAv4j5cvGGr0GRqy180BHbRw.",
	"sub": ObjectID, "tid": Tenant, "uti": "fqiBqXLPj0eQa82S-IYFAA", "ver": "2.0", "xms_ftd": "LXlpr8BQ",
}

var google = map[string]any{
	"azp": "113774264463038321964", "email": "signer@example-project.iam.gserviceaccount.com", "email_verified": true, "sub": "113774264463038321964",
	"google": map[string]any{"compute_engine": map[string]any{
		"instance_creation_timestamp": 1486397225, "instance_id": "152986662232938449", "instance_name": "signer", "project_id": "example-project",
		"project_number": 739419398126, "zone": "us-west1-a",
	}},
}
