package config

import (
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[redacted]"

// Secret is a value that never prints itself: every way of formatting,
// logging or marshalling gives "[redacted]". Only Reveal gives the value.
//
// The value stands behind a pointer because fmt calls no methods on unexported
// fields: a struct that keeps a Secret in one prints an address, not the value.
type Secret struct{ value *string }

// NewSecret wraps a value.
func NewSecret(value string) Secret { return Secret{value: &value} }

// Reveal gives the value, to be handed to the peer it is meant for.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsZero says whether there is no secret at all.
func (s Secret) IsZero() bool { return s.Reveal() == "" }

// String gives "[redacted]".
func (s Secret) String() string { return redacted }

// GoString gives "[redacted]".
func (s Secret) GoString() string { return redacted }

// Format writes "[redacted]" for every verb: without it %x or %d of a struct
// that holds a Secret would print the bytes by reflection.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue gives "[redacted]".
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText gives "[redacted]".
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON gives "[redacted]".
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalYAML gives "[redacted]".
func (s Secret) MarshalYAML() (any, error) { return redacted, nil }
