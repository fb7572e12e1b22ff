package snapname

import (
	"regexp"
	"strings"
	"testing"
)

// fits is what PVE takes (pve-configid, and its parser of configs).
var fits = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{1,39}$`)

func TestNames(t *testing.T) {
	for _, tc := range []struct{ name, id string }{
		{"before-upgrade", "before-upgrade"},
		{"v1.2.3", "v1_2_3"},
		{"a.b-c", "a_b-c"},
		{"2026-11-22", "S-2026-11-22"},
		{"1", "S-1"},
		{"a", "S-a"},
		{"ab", "ab"},
		{"current", "S-current"},
		{"pending", "S-pending"},
		{"vzdump", "S-vzdump"},
		{"current.1", "current_1"},
		{strings.Repeat("a", 40), strings.Repeat("a", 40)},
		{"1" + strings.Repeat("a", 37), "S-1" + strings.Repeat("a", 37)},
		// What does not fit keeps its beginning.
		{strings.Repeat("a", 41), "aaaaaaaaaaaaaaaaaaaaaa-Xyd4l2tn4fmgaged4"},
		{"1" + strings.Repeat("a", 38), "S-1aaaaaaaaaaaaaaaaaaa-X4ux2j4dbe7xzj7qt"},
		{"postgres-main.before-the-migration-to-version-16.2026", "postgres-main_before-t-Xrgqhnplqju4ckjxf"},
		// What is no name of a DNS subdomain.
		{"Before_Upgrade", "Before_Upgrade-X57ufpljybpwbqybq"},
		{"vor dem Öffnen", "vor_dem__ffnen-Xg2cjgnxltijkvm6p"},
		{"-", "S---Xhfz6aixjgiqpsijm"},
	} {
		id := Encode(tc.name)
		if id != tc.id {
			t.Errorf("%s is %s in PVE, want %s", tc.name, id, tc.id)
		}
		if !fits.MatchString(id) {
			t.Errorf("%s: PVE does not take %s", tc.name, id)
		}
		for _, said := range []string{"", "first line\nsecond line", "Snapshot name: something-else"} {
			d := Describe(tc.name, id, said)
			if got := Decode(id, d); got != tc.name {
				t.Errorf("%s became %s (%q), from which %s is told", tc.name, id, d, got)
			}
			if !strings.HasPrefix(d, said) || strings.Contains(id, long) != (d != said) {
				t.Errorf("%s: the description %q became %q", tc.name, said, d)
			}
		}
	}
}

func TestNamesOfOthers(t *testing.T) {
	for id, description := range map[string]string{
		"Before_Upgrade":                   "",
		"S-a":                              "", // as ours would be
		"S-abc":                            "",
		"foo-Xabcdefghijklmnop":            "",
		"foo-Xabcdefghijklmnoq":            "Snapshot name: foo",
		"aaaaaaaaaaaaaaaaaaaaaa-Xnotours2": "Snapshot name: " + strings.Repeat("a", 41),
	} {
		want := id
		if id == "S-a" {
			want = "a"
		}
		if got := Decode(id, description); got != want {
			t.Errorf("%s is said to be %s", id, got)
		}
	}
	id := Encode(strings.Repeat("x", 100))
	if got := Decode(id, "somebody has written another text"); got != id {
		t.Errorf("without our line %s is said to be %s", id, got)
	}
	if got := Decode(id, Describe(strings.Repeat("x", 100), id, "text")+"\nand more below"); got != strings.Repeat("x", 100) {
		t.Errorf("with more below our line %s is said to be %s", id, got)
	}
}

func TestNamesThatCannotBe(t *testing.T) {
	for _, name := range []string{"", strings.Repeat("a", 254), "two\nlines", " x", "x ", "a\x00b", "\xff", "a\u202eb"} {
		if Check(name) == nil {
			t.Errorf("%q is a name", name)
		}
	}
	for _, name := range []string{"a", strings.Repeat("a", 253), "v1.2", "Vor dem Öffnen"} {
		if err := Check(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func FuzzNames(f *testing.F) {
	for _, name := range []string{"a", "v1.2", "v1_2", "S-1", "1", "current", "Current", strings.Repeat("a.", 30), "x-Xabcdefghijklmnop"} {
		f.Add(name, "v1-2", "text\nSnapshot name: b")
	}
	f.Fuzz(func(t *testing.T, name, other, said string) {
		id := Encode(name)
		if !fits.MatchString(id) || reserved[strings.ToLower(id)] {
			t.Errorf("%q: PVE does not take %q", name, id)
		}
		if name != other && Encode(other) == id {
			t.Errorf("%q and %q are both %s", name, other, id)
		}
		if Check(name) != nil {
			return
		}
		if got := Decode(id, Describe(name, id, said)); got != name {
			t.Errorf("%q became %q, from which %q is told", name, id, got)
		}
	})
}
