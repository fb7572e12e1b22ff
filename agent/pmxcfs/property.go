package pmxcfs

import (
	"iter"
	"math"
	"strconv"
	"strings"
)

// Props is a PVE property string, `a=b,c=d`, in which the first value may stand without its key.
type Props string

// Get returns the value of key.
func (p Props) Get(key string) (string, bool) {
	for k, v := range p.All() {
		if k == key {
			return v, true
		}
	}
	return "", false
}

// All yields the pairs in their order; the key of a bare value is "".
func (p Props) All() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for part := range strings.SplitSeq(string(p), ",") {
			part = strings.Trim(part, whitespace)
			if part == "" {
				continue
			}
			k, v, ok := strings.Cut(part, "=")
			if !ok {
				k, v = "", part
			}
			if !yield(k, v) {
				return
			}
		}
	}
}

// either returns the bare value, or the value of key.
func (p Props) either(key string) string {
	for k, v := range p.All() {
		if k == "" || k == key {
			return v
		}
	}
	return ""
}

// ParseSize reads a PVE disk size, such as 400M, 32G, 1.5T or a plain number of bytes. 0 means that it is none.
func ParseSize(s string) int64 {
	shift := 0
	switch {
	case strings.HasSuffix(s, "K"):
		shift = 10
	case strings.HasSuffix(s, "M"):
		shift = 20
	case strings.HasSuffix(s, "G"):
		shift = 30
	case strings.HasSuffix(s, "T"):
		shift = 40
	}
	number := strings.TrimRight(s, "KMGT")
	if strings.Trim(number, "0123456789.") != "" || len(s)-len(number) > 1 {
		return 0
	}
	if n, err := strconv.ParseInt(number, 10, 64); err == nil && n <= math.MaxInt64>>shift {
		return n << shift
	}
	f, err := strconv.ParseFloat(number, 64)
	if f *= math.Ldexp(1, shift); err != nil || f >= math.MaxInt64 {
		return 0
	}
	return int64(f)
}
