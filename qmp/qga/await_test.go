package qga

import (
	"bufio"
	"bytes"
	"testing"
	"testing/iotest"
)

// FuzzAwait lets the guest say anything before and instead of its answer: no
// panic, and only the answer with our id is one.
func FuzzAwait(f *testing.F) {
	for _, seed := range []string{
		"\xff{\"return\": 4711}\n", "{\"return\": 4711}\n", "{\"ret\xff{\"return\": 4711}\n", "\xff\xff\n\xff{\"return\": 4711}\n",
		"{\"error\": {\"class\": \"GenericError\", \"desc\": \"x\"}}\n\xff{\"return\": 1}\n\xff{\"return\": 4711}\n", "\xff{\"return\": \"4711\"}\n", "\n\n", "",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		whole := await(bufio.NewReader(bytes.NewReader(stream)), 4711)
		bytewise := await(bufio.NewReaderSize(iotest.OneByteReader(bytes.NewReader(stream)), 16), 4711)
		if (whole == nil) != (bytewise == nil) {
			t.Errorf("at once: %v, by the byte: %v", whole, bytewise)
		}
		if whole == nil && (!bytes.Contains(stream, []byte{delimiter}) || !bytes.Contains(stream, []byte("4711"))) {
			t.Error("an answer that was not given")
		}
	})
}
