package config

// Serve is how hsmsign serve listens.
type Serve struct {
	Listen  []string `yaml:"listen"`  // tls://HOST:PORT, unix:///PATH, http://LOOPBACK:PORT
	TLS     TLS      `yaml:"tls"`     // of tls: listeners
	CRL     string   `yaml:"crl"`     // path of the CRLs of client-ca
	Hosts   []string `yaml:"hosts"`   // names that requests may use, besides those of listen and of the certificate
	Metrics string   `yaml:"metrics"` // HOST:PORT for /metrics, /livez and /readyz
	Traces  string   `yaml:"traces"`  // URL of an OpenTelemetry collector (OTLP over HTTP)
	DropIn  DropIn   `yaml:"drop-in"` // wire forms of other products that are answered
	AWS     AWS      `yaml:"aws"`     // of callers with an AWS identity
	Console bool     `yaml:"console"` // pages for people, in a browser

	ConsoleOIDC map[string]ConsoleOIDC `yaml:"console-oidc"` // issuers at which people sign in, by their names in oidc
}

// ConsoleOIDC is the service as a client of an issuer.
type ConsoleOIDC struct {
	ClientID         string `yaml:"client-id"`
	ClientSecretFile string `yaml:"client-secret-file"` // path, mode 0600; "": a public client
}

// DropIn says which wire forms of other products the service answers; see docs/dropin.md.
type DropIn struct {
	Fleet   bool    `yaml:"fleet"`
	Zentral bool    `yaml:"zentral"`
	MDMCert MDMCert `yaml:"mdmcert"` // that of mdmcert.download; the zero MDMCert: no
}

// MDMCert says how answers in the form of mdmcert.download are mailed: one of its fields is set.
type MDMCert struct {
	Spool string `yaml:"spool"` // path of a folder for mails that another program sends
	SMTP  bool   `yaml:"smtp"`  // by the SMTP server of notify
}

// OIDC is an issuer of OIDC tokens.
type OIDC struct {
	Issuer    string `yaml:"issuer"`     // URL, as in the claim iss
	Audience  string `yaml:"audience"`   // the claim aud of tokens for this service
	Kind      string `yaml:"kind"`       // one of policy.OIDCKinds; empty: that of the URL
	MaxAge    string `yaml:"max-age"`    // of a token, 1m to 24h; empty: 1h
	CA        string `yaml:"ca"`         // path, PEM: CAs of the issuer's certificate, instead of those of the system
	TokenFile string `yaml:"token-file"` // path, mode 0600: a token that the issuer demands for its keys; it is read each time
}

// AWS is how the service asks AWS STS.
type AWS struct {
	STSEndpoint string `yaml:"sts-endpoint"` // URL of a double with a loopback address, for tests
}

// TLS is the certificate of the service, and the CAs of its callers.
type TLS struct {
	Cert     string `yaml:"cert"`      // path, PEM: the certificate and those between it and the CA
	Key      string `yaml:"key"`       // path, PEM, mode 0600
	ClientCA string `yaml:"client-ca"` // path, PEM: CAs of callers whose certificate is accepted by its name
}

// in returns the paths joined to dir.
func (s Serve) in(dir string) Serve {
	s.TLS.Cert, s.TLS.Key, s.TLS.ClientCA, s.CRL = inFolder(dir, s.TLS.Cert), inFolder(dir, s.TLS.Key), inFolder(dir, s.TLS.ClientCA), inFolder(dir, s.CRL)
	s.DropIn.MDMCert.Spool = inFolder(dir, s.DropIn.MDMCert.Spool)
	for name, client := range s.ConsoleOIDC {
		client.ClientSecretFile = inFolder(dir, client.ClientSecretFile)
		s.ConsoleOIDC[name] = client
	}
	return s
}
