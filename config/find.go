package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// systemFile is read when nothing nearer is there.
const systemFile = "/etc/hsmsign/hsmsign.yaml"

// Find says which config file to load, and who named it: "--config" (explicit), "HSMSIGN_CONFIG", "user" or
// "system", the first of these that is there. It gives "", "" and no error where there is none. The working
// directory is never looked at: a config file names a module that is loaded as code.
//
// A file that --config or HSMSIGN_CONFIG names must be there; the error wraps fs.ErrNotExist otherwise. env is
// os.Getenv, userConfigDir os.UserConfigDir; a user without a config folder is no error.
func Find(explicit string, env func(string) string, userConfigDir func() (string, error)) (path, where string, err error) {
	return find(explicit, env, userConfigDir, systemFile)
}

func find(explicit string, env func(string) string, userConfigDir func() (string, error), system string) (path, where string, err error) {
	user := ""
	if dir, err := userConfigDir(); err == nil {
		user = filepath.Join(dir, "hsmsign", "hsmsign.yaml")
	}
	for _, place := range []struct {
		path, where string
		must        bool
	}{
		{explicit, "--config", true},
		{env("HSMSIGN_CONFIG"), "HSMSIGN_CONFIG", true},
		{user, "user", false},
		{system, "system", false},
	} {
		if place.path == "" {
			continue
		}
		_, err := os.Stat(place.path)
		switch {
		case err == nil:
			return place.path, place.where, nil
		case place.must || !errors.Is(err, fs.ErrNotExist):
			return "", "", fmt.Errorf("config file of %s: %w", place.where, err)
		}
	}
	return "", "", nil
}
