package main

import (
	"io"
	"log/slog"

	"github.com/pve-rigaud/pve-rigaud/agent/config"
)

// newLog returns the logger that the configuration asks for. Under systemd, standard error goes to the journal, which
// adds the time itself.
func newLog(c config.Log, w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.Level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	if c.Format == "journal" {
		options.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.New(slog.NewTextHandler(w, options))
}
