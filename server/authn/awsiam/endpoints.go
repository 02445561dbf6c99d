package awsiam

import (
	"net/netip"
	"net/url"
	"strings"
	"sync"

	"hsmsign/fault"
)

// endpoint is an endpoint of STS.
type endpoint struct{ host, region, partition string }

// regions are the regions with an endpoint of STS, by partition. The list is closed: a name that is not in it could be a host of
// somebody else.
var regions = map[string][]string{
	"aws": {
		"af-south-1", "ap-east-1", "ap-east-2", "ap-northeast-1", "ap-northeast-2", "ap-northeast-3", "ap-south-1", "ap-south-2",
		"ap-southeast-1", "ap-southeast-2", "ap-southeast-3", "ap-southeast-4", "ap-southeast-5", "ap-southeast-6", "ap-southeast-7",
		"ca-central-1", "ca-west-1", "eu-central-1", "eu-central-2", "eu-north-1", "eu-south-1", "eu-south-2", "eu-west-1", "eu-west-2",
		"eu-west-3", "il-central-1", "me-central-1", "me-south-1", "mx-central-1", "sa-east-1", "us-east-1", "us-east-2", "us-west-1", "us-west-2",
	},
	"aws-cn":     {"cn-north-1", "cn-northwest-1"},
	"aws-us-gov": {"us-gov-east-1", "us-gov-west-1"},
	"aws-eusc":   {"eusc-de-east-1"},
}

// domains are the domains of the partitions.
var domains = map[string]string{"aws": "amazonaws.com", "aws-cn": "amazonaws.com.cn", "aws-us-gov": "amazonaws.com", "aws-eusc": "amazonaws.eu"}

// endpoints are the endpoints of STS by host ("AWS Security Token Service endpoints and quotas", AWS General Reference).
var endpoints = sync.OnceValue(func() map[string]endpoint {
	all := map[string]endpoint{"sts.amazonaws.com": {"sts.amazonaws.com", "us-east-1", "aws"}}
	add := func(host, region, partition string) { all[host] = endpoint{host, region, partition} }
	for partition, names := range regions {
		for _, region := range names {
			add("sts."+region+"."+domains[partition], region, partition)
		}
	}
	for _, region := range []string{"us-east-1", "us-east-2", "us-west-1", "us-west-2"} {
		add("sts-fips."+region+".amazonaws.com", region, "aws")
	}
	return all
})

// findEndpoint returns the endpoint that a URL names: https://HOST or https://HOST/, and nothing else. The text is compared, and not
// parsed: a URL with a user, a port, a path or a query is not one of the table.
func findEndpoint(text string) (endpoint, error) {
	host, ok := strings.CutPrefix(text, "https://")
	found, known := endpoints()[strings.TrimSuffix(host, "/")]
	if !ok || !known {
		return endpoint{}, refusef("%q is not an endpoint of STS", fault.Clip(text, 128))
	}
	return found, nil
}

// CheckEndpoint checks a Config.Endpoint. The error is of kind usage.
func CheckEndpoint(text string) error {
	u, err := url.Parse(text)
	switch {
	case text == "":
		return nil
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "" || u.Path != "" && u.Path != "/":
	case isLoopback(u.Hostname()):
		return nil
	}
	return fault.Usage.Errorf("sts-endpoint: %q is not the URL of a loopback address", fault.Clip(text, 128)).
		Fix("it is for tests, as http://127.0.0.1:8081; without it the endpoints of AWS STS are used")
}

// isLoopback returns whether a host is an address of this machine that no other machine reaches.
func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && ip.IsLoopback()
}
