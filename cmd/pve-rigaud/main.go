// Command pve-rigaud is the agent that makes a Proxmox VE node serve VirtRigaud's provider.v1.Provider, and the commands
// that ask it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/pve-rigaud/pve-rigaud/agent"
	"github.com/pve-rigaud/pve-rigaud/agent/config"
)

// Exit codes, as sysexits.h has them where it has them.
const (
	exitOK     = 0
	exitFailed = 1  // the agent ended because something broke, and systemd starts it again; or it cannot be asked
	exitUsage  = 64 // a wrong command line
	exitConfig = 78 // a wrong configuration: starting again would not help
)

const usage = `pve-rigaud makes a Proxmox VE node serve VirtRigaud's provider.v1.Provider.

Usage:
  pve-rigaud agent [flags]   run this node's agent (pve-rigaud agent --help lists the flags)
  pve-rigaud members         list the nodes: who is in, and how old each one's capacity is
  pve-rigaud images [NAME]   list what VMs are made from, and on which nodes it is
  pve-rigaud vms             list the guests of the cluster, where they are, and who made them
  pve-rigaud explain VM      why a VM was made where it is, or was refused
  pve-rigaud place           where a VM would be made now (--cpu 4 --memory 8Gi --image debian-12)
  pve-rigaud cordon NODE     keep new VMs away from a node; uncordon NODE lets them come again
  pve-rigaud drain NODE      cordon a node, and move its VMs to other nodes while they run
  pve-rigaud restore NODE    uncordon a node, and move back what drain has moved away
  pve-rigaud version         print the version
  pve-rigaud help            print this

All but agent, version and help ask the agent of this node and take --json, --socket PATH and --help, which lists more.
Exit codes: 0 fine, 1 failed (the agent cannot be reached, or does not know; for drain and restore: not all was moved),
64 wrong command line, 78 wrong configuration.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code := run(ctx, os.Args[1:], os.LookupEnv, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, env func(string) (string, bool), stdout, stderr io.Writer) int {
	command := "help"
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	switch command {
	case "agent":
		return runAgent(ctx, args, env, stdout, stderr)
	case "version", "--version":
		say(stdout, versionText()+"\n")
		return exitOK
	case "help", "--help", "-h":
		say(stdout, usage)
		return exitOK
	}
	if q, ok := questions()[command]; ok {
		return q.run(ctx, args, stdout, stderr)
	}
	if e, ok := errands()[command]; ok {
		return e.run(ctx, args, stdout, stderr)
	}
	say(stderr, fmt.Sprintf("pve-rigaud: no such command %q\n\n%s", command, usage))
	return exitUsage
}

// gcPercent is three times Go's default: what an agent keeps is a few MiB, and requests under load would have the collector run
// ten times a second, for want of as much again.
const gcPercent = 300

func runAgent(ctx context.Context, args []string, env func(string) (string, bool), stdout, stderr io.Writer) int {
	cfg, err := config.Load(args, env)
	if errors.Is(err, pflag.ErrHelp) {
		say(stdout, config.FlagUsages())
		return exitOK
	}
	if err != nil {
		say(stderr, fmt.Sprintf("pve-rigaud: %v\n", err))
		if errors.Is(err, config.ErrNotMounted) {
			return exitFailed // at a boot, pmxcfs may come later than we do
		}
		return exitConfig
	}
	if cfg.PrintConfig {
		if err := cfg.Dump(stdout); err != nil {
			say(stderr, fmt.Sprintf("pve-rigaud: print the configuration: %v\n", err))
			return exitFailed
		}
		return exitOK
	}
	if _, set := env("GOGC"); !set {
		debug.SetGCPercent(gcPercent)
	}
	log := newLog(cfg.Log, stderr)
	a, err := agent.New(ctx, cfg, log, agent.WithVersion(versionText()))
	if err == nil {
		err = a.Run(ctx)
	}
	if err != nil {
		log.ErrorContext(ctx, "the agent has failed", "err", err)
		return exitFailed
	}
	log.InfoContext(ctx, "stopped")
	return exitOK
}

// say writes for a person; one that has gone away cannot be told so.
func say(w io.Writer, text string) { _, _ = io.WriteString(w, text) }

// version is set by the linker in builds made with make.
var version string

func versionText() string { return programVersion() + " " + runtime.Version() }

// programVersion is what make said this is, else what Go recorded about the build.
func programVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
