package spec

import (
	"math/big"
	"strings"
	"testing"
)

// quantities are compared with k8s.io/apimachinery v0.34: Value() of what it parses.
var quantities = map[string]int64{
	"0": 0, "1": 1, "4096": 4096, "4Gi": 4 << 30, "1.5Gi": 3 << 29, "0.5Ti": 1 << 39, ".5Ki": 512, "1.Ki": 1024, "1500M": 1_500_000_000,
	"2k": 2000, "2e9": 2_000_000_000, "2E9": 2_000_000_000, "1E": 1_000_000_000_000_000_000, "1Ei": 1 << 60, "1T": 1_000_000_000_000,
	"128974848": 128974848, "129e6": 129_000_000, "129M": 129_000_000, "128974848000m": 128974848, "123Mi": 123 << 20, "1e+3": 1000,
	"1500e-3": 2, "1m": 1, "1u": 1, "1n": 1, "0.1": 1, "1.5": 2, "+5": 5, "010": 10, "9223372036854775807": 9223372036854775807, "0e9": 0,
}

func TestQuantities(t *testing.T) {
	for text, want := range quantities {
		if got, err := parseQuantity(text); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", " ", "Gi", ".", "+", "-", "1 Gi", " 1", "1Gi ", "4Gx", "4gi", "4K", "4KiB", "4GB", "1ki", "0x10", "1_000", "1.2.3", "1e", "1e3Gi", "1e3.5",
		"--1", "1-", "ten", "NaN", "Inf", "1e1e1", "-1", "-0.1", "-1Gi", "8Ei", "9223372036854775808", "1e19", "1e999999999", "1e-999999999", "1e0x2",
		strings.Repeat("1", 65),
	} {
		if got, err := parseQuantity(text); err == nil {
			t.Errorf("%q was taken for %d", text, got)
		}
	}
}

// FuzzQuantity compares with what math/big makes of the same number without its suffix.
func FuzzQuantity(f *testing.F) {
	for text := range quantities {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseQuantity(text)
		if err != nil {
			return
		}
		if got < 0 {
			t.Fatalf("%q became %d", text, got)
		}
		number := strings.TrimRight(text, "numkKMGTPEi")
		suffix := suffixes[text[len(number):]]
		want, ok := new(big.Rat).SetString(number)
		if !ok {
			t.Fatalf("%q was taken for %d", text, got)
		}
		unit := new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(int64(suffix.base)), big.NewInt(int64(max(suffix.exponent, -suffix.exponent))), nil))
		if suffix.exponent < 0 {
			unit.Inv(unit)
		}
		if suffix.base != 0 {
			want.Mul(want, unit)
		}
		if below, above := big.NewRat(got, 1), new(big.Rat).Add(want, big.NewRat(1, 1)); below.Cmp(want) < 0 || below.Cmp(above) >= 0 {
			t.Errorf("%q became %d, is %s", text, got, want)
		}
	})
}
