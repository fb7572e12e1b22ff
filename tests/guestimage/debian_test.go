package guestimage

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestDebianInitramfs(t *testing.T) {
	t.Parallel()
	cfg, err := Config{CacheDir: t.TempDir()}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	p, err := locate(cfg.Roots)
	if err != nil {
		t.Skipf("skipped: %v", err)
	}
	archive, err := debianInitramfs(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(cfg.CacheDir, "initrd")
	if err := os.WriteFile(file, archive, 0o600); err != nil {
		t.Fatal(err)
	}
	files := unpack(t, file)
	assertModules(t, files)
	order := strings.Fields(string(files["etc/modules"].data))
	for _, name := range []string{"ext4.ko", "virtio_scsi.ko", "sd_mod.ko", "isofs.ko"} {
		// What is built into the kernel is not in the list.
		if !slices.Contains(order, name) && name != "ext4.ko" {
			t.Errorf("%s is not loaded: %v", name, order)
		}
	}
	// Every program that init calls is there.
	for _, name := range []string{"mount", "umount", "insmod", "findfs", "usleep", "switch_root", "sh"} {
		if files["bin/"+name].mode == 0 {
			t.Errorf("bin/%s is missing", name)
		}
		if !strings.Contains(string(files["init"].data), name) {
			t.Errorf("init does not use %s", name)
		}
	}
}

// TestDebianDiskIsFoundByItsRecipe: what changes the disk changes its name.
func TestDebianDiskIsFoundByItsRecipe(t *testing.T) {
	t.Parallel()
	plan, err := planDebian(t.Context())
	if err != nil {
		t.Skipf("skipped: %v; enable with: apt-get install --no-install-recommends mmdebstrap e2fsprogs", err)
	}
	again, err := plan.hash(t.Context())
	if err != nil || again != plan.key {
		t.Errorf("the same plan is %s, then %s, %v", plan.key, again, err)
	}
	for name, change := range map[string]func(*debianPlan){
		"release":  func(p *debianPlan) { p.suite += "-next" },
		"packages": func(p *debianPlan) { p.packages = append(slices.Clone(p.packages), "bash") },
	} {
		other := plan
		change(&other)
		if key, err := other.hash(t.Context()); err != nil || key == plan.key {
			t.Errorf("another %s has the same key, %v", name, err)
		}
	}
	cache := t.TempDir()
	want := filepath.Join(cache, "debian-"+plan.key+".raw")
	if err := os.WriteFile(want, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := debianDisk(t.Context(), cache); err != nil || got != want {
		t.Errorf("the disk of the cache was not taken: %s, %v", got, err)
	}
}

func TestOldDebianDisksGo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"debian-1.raw", "debian-2.raw", "initrd-1.cpio"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := dropOthers(dir, filepath.Join(dir, "debian-2.raw")); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 2 || filepath.Base(left[0]) != "debian-2.raw" {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestToolSaysWhatWentWrong(t *testing.T) {
	t.Parallel()
	err := runTool(t.Context(), []string{"sh", "-c", "echo no such suite >&2; exit 3"})
	if err == nil || !strings.Contains(err.Error(), "no such suite") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v", err)
	}
}
