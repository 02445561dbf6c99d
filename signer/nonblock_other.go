//go:build !unix

package signer

const nonblock = 0
