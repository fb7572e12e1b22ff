package pvesim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// loadAverage of every node.
const loadAverage = "0.10 0.12 0.09"

// writeKernel writes what the nodes' kernels tell in /proc and /sys, as far as an agent reads it there for the host.
func (c *Cluster) writeKernel(context.Context) error {
	for _, n := range c.nodes {
		files := map[string]string{
			"stat": n.statText(), "loadavg": loadAverage + " 1/789 4711\n",
			"pressure/cpu": pressureText, "pressure/memory": pressureText, "pressure/io": pressureText,
		}
		if n.arc > 0 {
			files["spl/kstat/zfs/arcstats"] = n.arcText()
		}
		for _, name := range sortedKeys(files) {
			if err := writeBelow(n.Proc, name, files[name]); err != nil {
				return err
			}
		}
		for _, name := range append([]string{"lo/operstate", "eno1/operstate"}, n.bridgeFiles()...) {
			if err := writeBelow(n.Sys, filepath.Join("class/net", name), "\n"); err != nil {
				return err
			}
		}
		c.tellMemory(n)
	}
	return nil
}

func writeBelow(dir, name, text string) error {
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	return replaceFile(path, []byte(text), 0o644)
}

// tellMemory writes how much memory is left, after a VM has started or ended.
func (c *Cluster) tellMemory(n *Node) {
	n.kernel.Lock()
	defer n.kernel.Unlock()
	if _, err := os.Stat(n.Proc); err != nil {
		return // the cluster is only starting
	}
	if err := writeBelow(n.Proc, "meminfo", c.meminfo(n)); err != nil && c.ctx.Err() == nil {
		c.log.Warn("memory of a node", "node", n.Name, "err", err)
	}
}

func (c *Cluster) meminfo(n *Node) string {
	free := (n.memory - c.usedMemory(n)) >> 10
	return fmt.Sprintf("MemTotal: %15d kB\nMemFree: %16d kB\nMemAvailable: %11d kB\nBuffers: %16d kB\n", n.memory>>10, free, free, 0)
}

func (n *Node) statText() string {
	var b strings.Builder
	b.WriteString("cpu  1393280 32966 572056 13343292 6130 0 17875 0 23933 0\n")
	for i := range n.cpus {
		fmt.Fprintf(&b, "cpu%d 172000 4100 71500 1667900 766 0 2234 0 2991 0\n", i)
	}
	b.WriteString("intr 0\nctxt 0\nbtime 1767323045\n")
	return b.String()
}

// arcText has a cache as small as it gets.
func (n *Node) arcText() string {
	return fmt.Sprintf("9 1 0x01 147 39984 6417014542 10815393146\nname                            type data\n"+
		"c_min                           4    %d\nsize                            4    %d\n", n.arc, n.arc)
}

const pressureText = "some avg10=0.00 avg60=0.01 avg300=0.02 total=98765\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=4321\n"

func (n *Node) bridgeFiles() []string {
	var out []string
	for _, b := range n.bridges {
		out = append(out, filepath.Join(b, "bridge", "bridge_id"))
	}
	return out
}
