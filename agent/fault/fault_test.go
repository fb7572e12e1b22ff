package fault

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

func TestErrorKeepsReasonMessageAndCause(t *testing.T) {
	err := error(New(Precondition, "start VM 104: %w", io.ErrUnexpectedEOF))
	wrapped := fmt.Errorf("power: %w", err)
	if got, want := wrapped.Error(), "power: start VM 104: unexpected EOF"; got != want {
		t.Errorf("message %q, want %q", got, want)
	}
	if !errors.Is(wrapped, io.ErrUnexpectedEOF) {
		t.Error("the cause is lost")
	}
	if Of(wrapped) != Precondition || !Is(wrapped, Precondition) || Is(wrapped, Invalid) {
		t.Errorf("reason %q, want %q", Of(wrapped), Precondition)
	}
}

func TestReasonOfForeignErrors(t *testing.T) {
	if Of(io.EOF) != Internal {
		t.Errorf("a foreign error is %q, want internal", Of(io.EOF))
	}
	if Is(nil, Internal) {
		t.Error("no error has no reason")
	}
	outer := New(Exists, "create: %w", New(Invalid, "inner"))
	if Of(outer) != Exists {
		t.Error("the outermost reason counts")
	}
}
