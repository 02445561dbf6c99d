package reconcile

import (
	"slices"
	"strings"

	"hsmsign/fault"
	"hsmsign/signer"
)

// Select keeps the calls of one key. The reference is one of this cloud: awskms: or gcpkms:. An alias of AWS is resolved by
// the calls that name it; if there are only others, the error is of kind usage.
func (l *Log) Select(ref signer.Ref) error {
	scheme := map[Cloud]string{AWS: "awskms", GCP: "gcpkms"}[l.Cloud]
	if ref.Scheme != scheme {
		return fault.Usage.Errorf("the key %s is not one of this cloud", ref).Fix("name the key with --key " + scheme + ":...")
	}
	name := strings.TrimLeft(ref.Path, "/")
	if name == "" {
		return fault.Usage.Errorf("%s names no key", ref).Fix("write the ARN or the name of the key version")
	}
	if l.Cloud == GCP {
		l.keep(func(c Call) bool { return sameVersion(name, c.KeyID) })
		return nil
	}
	if resource(name, "key/") != "" || !strings.Contains(name, "alias/") {
		l.keep(func(c Call) bool { return sameKey(name, c.Key) || c.Key == "" && sameKey(name, c.KeyID) })
		return nil
	}
	return l.selectAlias(ref, name)
}

// selectAlias keeps the calls of the keys that an alias named.
func (l *Log) selectAlias(ref signer.Ref, alias string) error {
	regions := regionsOf(ref)
	if region := regionOf(alias); region != "" {
		regions = []string{region}
	}
	named := func(c Call) bool { return short(c.KeyID) == short(alias) }
	var keys []string
	for _, c := range l.Calls {
		if named(c) && c.Key != "" && (len(regions) == 0 || slices.Contains(regions, regionOf(c.Key))) && !slices.Contains(keys, c.Key) {
			keys = append(keys, c.Key)
		}
	}
	if len(keys) == 0 && slices.ContainsFunc(l.Calls, func(c Call) bool { return c.Key != "" }) {
		return fault.Usage.Errorf("no signature in the log says which key %s is", short(alias)).Fix("name the key by its ARN: --key awskms:///arn:aws:kms:...")
	}
	l.keep(func(c Call) bool { return slices.Contains(keys, c.Key) || c.Key == "" && named(c) })
	return nil
}

func (l *Log) keep(is func(Call) bool) {
	l.Calls = slices.DeleteFunc(l.Calls, func(c Call) bool { return !is(c) })
}

// sameKey returns whether an ARN is that of the key with this ARN or id. A multi-Region key has one id in all regions.
func sameKey(key, arn string) bool {
	id := key
	if strings.HasPrefix(key, "arn:") {
		if id = resource(key, "key/"); !strings.HasPrefix(id, "mrk-") {
			return key == arn
		}
	}
	return arn == id || resource(arn, "key/") == id
}

// short returns "alias/NAME" of an alias or its ARN.
func short(alias string) string {
	if i := strings.LastIndex(alias, ":alias/"); i >= 0 {
		return alias[i+1:]
	}
	return alias
}

// resource returns the id in an ARN: that of a key for "key/", the name for "alias/"; "" for other texts.
func resource(arn, kind string) string {
	parts := strings.SplitN(arn, ":", 6) // arn:aws:kms:REGION:ACCOUNT:key/ID
	if len(parts) < 6 || parts[0] != "arn" {
		return ""
	}
	id, ok := strings.CutPrefix(parts[5], kind)
	if !ok {
		return ""
	}
	return id
}

func regionOf(arn string) string {
	if parts := strings.SplitN(arn, ":", 6); len(parts) == 6 {
		return parts[3]
	}
	return ""
}

// regionsOf returns the regions that a reference names.
func regionsOf(ref signer.Ref) []string {
	if one, ok := ref.Query("region"); ok {
		return []string{one}
	}
	if several, ok := ref.Query("regions"); ok {
		return strings.Split(several, ",")
	}
	return nil
}

// sameVersion returns whether the name in a log is that of the key version, or of a version of the key. The log may have the
// id of a project and the reference its number, or the other way round.
func sameVersion(name, logged string) bool {
	if number := func(s string) bool { return strings.Trim(projectOf(s), "0123456789") == "" }; number(name) != number(logged) {
		_, name, _ = strings.Cut(name, "/locations/")
		_, logged, _ = strings.Cut(logged, "/locations/")
	}
	return name != "" && (logged == name || strings.HasPrefix(logged, name+"/cryptoKeyVersions/"))
}

func projectOf(name string) string {
	project, _, _ := strings.Cut(strings.TrimPrefix(name, "projects/"), "/")
	return project
}
