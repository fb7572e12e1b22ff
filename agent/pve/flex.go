package pve

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
)

// Int is a whole number that PVE may write as a number, as a string or as a float, depending on version and call.
type Int int64

// UnmarshalJSON accepts 5, "5", 5.0, true, false and null (which leaves the value alone).
func (i *Int) UnmarshalJSON(b []byte) error {
	s := string(bytes.Trim(b, `"`))
	switch s {
	case "null":
		return nil
	case "true":
		*i = 1
		return nil
	case "false", "":
		*i = 0
		return nil
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		*i = Int(n)
		return nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(f) || f >= math.MaxInt64 || f <= math.MinInt64 {
		return fmt.Errorf("pve: %.40q is not a whole number", s)
	}
	*i = Int(f)
	return nil
}

// Bool is a truth value that PVE writes as 0 or 1, sometimes in quotes, sometimes as true or false.
type Bool bool

// UnmarshalJSON accepts numbers, quoted numbers, true, false and null (which leaves the value alone).
func (v *Bool) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	var n Int
	if err := n.UnmarshalJSON(b); err != nil {
		return err
	}
	*v = n != 0
	return nil
}

// Float is a number that PVE may also write as a string.
type Float float64

// UnmarshalJSON accepts 0.5, "0.5" and null (which leaves the value alone).
func (f *Float) UnmarshalJSON(b []byte) error {
	s := string(bytes.Trim(b, `"`))
	if s == "null" {
		return nil
	}
	n, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return fmt.Errorf("pve: %.40q is not a number", s)
	}
	*f = Float(n)
	return nil
}
