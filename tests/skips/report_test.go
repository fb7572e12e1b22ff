package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRun lets the real go test run over small modules.
func TestRun(t *testing.T) {
	const (
		passes = "func TestPasses(t *testing.T) { t.Log(\"seen by nobody\") }\n"
		skips  = "func TestSkips(t *testing.T) { t.Skip(\"skipped: needs a moon; enable with: apt-get install moon\") }\n"
		skips2 = "func TestSkipsToo(t *testing.T) { t.Run(\"sub\", TestSkips) }\n"
		mute   = "func TestMute(t *testing.T) { t.Skip(\"not today\") }\n"
		fails  = "func TestFails(t *testing.T) {\n\tt.Run(\"fine\", func(t *testing.T) { t.Log(\"seen by nobody\") })\n" +
			"\tt.Run(\"bad\", func(t *testing.T) { t.Error(\"it broke\") })\n}\n"
		dies = "func TestDies(t *testing.T) { println(\"last words\"); panic(\"gone\") }\n"
	)
	const needsMoon = "\nSkipped on this machine:\n  needs a moon (%)\n      enable with: apt-get install moon\n"
	for name, c := range map[string]struct {
		code    string
		noSkip  bool
		want    []string // in the output, in this order
		exactly bool     // and nothing else
		err     string   // "" for none
	}{
		"pass": {code: passes, want: []string{"ok  \tm\tN\n"}, exactly: true},
		"skip": {
			code: passes + skips, exactly: true,
			want: []string{"ok  \tm\tN\n", strings.ReplaceAll(needsMoon, "%", "1 test")},
		},
		"skip twice": {
			code: skips + skips2, exactly: true,
			want: []string{"ok  \tm\tN\n", strings.ReplaceAll(needsMoon, "%", "2 tests")},
		},
		"skip where none is allowed": {
			code: skips, noSkip: true,
			want: []string{"needs a moon"}, err: "1 test skipped, and PVE_RIGAUD_NO_SKIP=1 allows none",
		},
		"skip without a reason": {
			code: mute, want: []string{"ok  \tm\tN\n"}, exactly: true,
			err: "skipped without saying what is needed: m TestMute",
		},
		"fail": {
			code: passes + fails, exactly: true,
			want: []string{
				"--- FAIL: TestFails (N)\n",
				"    m_test.go:8: it broke\n--- FAIL: TestFails/bad (N)\n",
				"FAIL\nFAIL\tm\tN\n",
			},
			err: "go test: exit status 1",
		},
		"panic": {
			code: passes + dies,
			want: []string{"last words", "panic: gone", "FAIL\tm\tN\n"}, err: "go test: exit status 1",
		},
		"does not compile": {
			code: "func TestX(t *testing.T) { nonsense() }\n",
			want: []string{"undefined: nonsense", "FAIL\tm [build failed]\n"}, err: "go test: exit status 1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Chdir(module(t, c.code))
			var out bytes.Buffer
			err := run(t.Context(), &out, []string{"./..."}, c.noSkip)
			got := regexp.MustCompile(`\d+\.\d+s`).ReplaceAllString(out.String(), "N")
			if c.exactly {
				if diff := cmp.Diff(strings.Join(c.want, ""), got); diff != "" {
					t.Errorf("output (-want +got):\n%s", diff)
				}
			}
			rest := got
			for _, w := range c.want {
				_, after, found := strings.Cut(rest, w)
				if !found {
					t.Errorf("no %q (in this place) in:\n%s", w, got)
				}
				rest = after
			}
			if msg := text(err); msg != c.err {
				t.Errorf("error %q, want %q", msg, c.err)
			}
		})
	}
}

// module writes a module with one test file.
func module(t *testing.T, code string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"go.mod":    "module m\n",
		"m_test.go": "package m\n\nimport \"testing\"\n\n" + code,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
