package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"reflect"
	"strconv"
	"strings"
	"time"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// quantity is an amount of bytes in the notation of Kubernetes: 4Gi, 1500M, 2e9, 0.5Ti, in a string or as a number.
type quantity int64

// UnmarshalJSON keeps null and the empty string as 0.
func (q *quantity) UnmarshalJSON(b []byte) error {
	text, err := textOf(b)
	if err == nil && text != "" {
		var n int64
		if n, err = parseQuantity(text); err == nil {
			*q = quantity(n)
		}
	}
	if err != nil {
		// A type error is what encoding/json adds the name of the field to.
		return &json.UnmarshalTypeError{Value: err.Error(), Type: reflect.TypeFor[quantity]()}
	}
	return nil
}

// textOf returns the text of a JSON string, or a number as it stands; null is "".
func textOf(b []byte) (string, error) {
	text := string(b)
	switch {
	case text == "null":
		return "", nil
	case text[0] == '"':
		err := json.Unmarshal(b, &text)
		return text, err
	case text[0] == '-' || text[0] >= '0' && text[0] <= '9':
		return text, nil
	}
	return "", fmt.Errorf("%.40s", text)
}

var errQuantity = errors.New("no quantity")

// suffixes of quantities: a power of two or of ten.
var suffixes = map[string]struct{ base, exponent int }{
	"": {10, 0}, "n": {10, -9}, "u": {10, -6}, "m": {10, -3}, "k": {10, 3}, "M": {10, 6}, "G": {10, 9}, "T": {10, 12}, "P": {10, 15}, "E": {10, 18},
	"Ki": {2, 10}, "Mi": {2, 20}, "Gi": {2, 30}, "Ti": {2, 40}, "Pi": {2, 50}, "Ei": {2, 60},
}

// Longer texts and larger exponents are no amount of memory or disk; the bounds keep the arithmetic small.
const (
	maxQuantityText     = 64
	maxQuantityExponent = 64
)

// parseQuantity returns the whole number of a quantity, rounded up as Kubernetes does it. Less than nothing is refused.
func parseQuantity(text string) (int64, error) {
	fail := func(problem string) (int64, error) { return 0, fmt.Errorf("%.70q%s", text, problem) }
	if len(text) > maxQuantityText {
		return fail("")
	}
	number := strings.TrimLeft(text, "+-0123456789.")
	number = text[:len(text)-len(number)]
	base, exponent, err := scale(text[len(number):])
	mantissa, merr := decimal(number)
	if err != nil || merr != nil {
		return fail("")
	}
	if mantissa.Sign() < 0 {
		return fail(", which is less than nothing")
	}
	factor := new(big.Int).Exp(big.NewInt(int64(base)), big.NewInt(int64(max(exponent, -exponent))), nil)
	if exponent < 0 {
		mantissa.Quo(mantissa, new(big.Rat).SetInt(factor))
	} else {
		mantissa.Mul(mantissa, new(big.Rat).SetInt(factor))
	}
	whole, rest := new(big.Int).QuoRem(mantissa.Num(), mantissa.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		whole.Add(whole, big.NewInt(1))
	}
	if !whole.IsInt64() {
		return fail(", which is too large")
	}
	return whole.Int64(), nil
}

// scale reads what follows the digits: a suffix, or e or E with a decimal exponent.
func scale(suffix string) (base, exponent int, err error) {
	if s, ok := suffixes[suffix]; ok {
		return s.base, s.exponent, nil
	}
	if suffix[0] != 'e' && suffix[0] != 'E' {
		return 0, 0, errQuantity
	}
	n, err := strconv.Atoi(suffix[1:])
	if err != nil || n < -maxQuantityExponent || n > maxQuantityExponent {
		return 0, 0, errQuantity
	}
	return 10, n, nil
}

// decimal reads digits with at most one point and one sign. Digits have to be on a side of the point at least.
func decimal(text string) (*big.Rat, error) {
	digits := text
	if digits != "" && strings.ContainsRune("+-", rune(digits[0])) {
		digits = digits[1:]
	}
	whole, fraction, _ := strings.Cut(digits, ".")
	if whole+fraction == "" || strings.ContainsAny(whole+fraction, "+-.") {
		return nil, errQuantity
	}
	n, ok := new(big.Rat).SetString(text)
	if !ok {
		return nil, errQuantity
	}
	return n, nil
}

// in returns the amount in whole units, rounded down as the manager does it for Create: a class is the same size
// whichever way it comes.
func (q quantity) in(unit int64) int { return int(min(int64(q)/unit, math.MaxInt32)) }

// Duration is a span of time in Go's notation, as Kubernetes writes it.
type Duration time.Duration

// UnmarshalJSON keeps null and the empty string as 0.
func (d *Duration) UnmarshalJSON(b []byte) error {
	text, err := textOf(b)
	if err == nil && text != "" {
		var t time.Duration
		if t, err = time.ParseDuration(text); err == nil && t < 0 {
			err = errors.New("less than nothing")
		}
		*d = Duration(t)
	}
	if err != nil {
		return &json.UnmarshalTypeError{Value: fmt.Sprintf("%.40s", b), Type: reflect.TypeFor[Duration]()}
	}
	return nil
}
