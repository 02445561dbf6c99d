//go:build !unix

package secret

const nonblock = 0
