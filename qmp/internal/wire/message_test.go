package wire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestReaderPutsPiecesTogether(t *testing.T) {
	stream := "{\"QMP\": {\"version\": {}}}\r\n{\"return\":\n {},\"id\": \"a\"}{\"event\":\"STOP\"}\n" +
		`{"id":"b","error":{"class":"GenericError","desc":"no"}} {"return": null}`
	for name, src := range map[string]io.Reader{
		"at once":      strings.NewReader(stream),
		"by the byte":  iotest.OneByteReader(strings.NewReader(stream)),
		"halves":       iotest.HalfReader(strings.NewReader(stream)),
		"end with EOF": iotest.DataErrReader(strings.NewReader(stream)),
	} {
		r := NewReader(src)
		var got []string
		for {
			m, err := r.Next()
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Errorf("%s: %v", name, err)
				}
				break
			}
			switch {
			case m.Greeting != nil:
				got = append(got, "greeting")
			case m.Event != "":
				got = append(got, m.Event)
			case m.Error != nil:
				got = append(got, m.Error.Desc)
			default:
				got = append(got, "return "+string(m.Return)+" "+string(m.ID))
			}
		}
		want := `greeting|return {} "a"|STOP|no|return null `
		if strings.Join(got, "|") != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestReaderBoundsAMessage(t *testing.T) {
	const limit = 1 << 16
	message := func(n int) string { return `{"return": "` + strings.Repeat("x", n) + `"}` }
	r := NewReader(strings.NewReader(strings.Repeat(message(limit/2), 10))) // the bound is of each message, not of the stream
	r.limit = limit
	for range 10 {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	r = NewReader(strings.NewReader(message(limit)))
	r.limit = limit
	if _, err := r.Next(); !errors.Is(err, ErrTooLong) {
		t.Errorf("%v, want it to be too long", err)
	}
}

func TestReaderCutShort(t *testing.T) {
	for _, text := range []string{`{"return": {}`, `{"ret`, `{`} {
		if _, err := NewReader(strings.NewReader(text)).Next(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// FuzzReader reads anything: no panic, every message is one of the kinds, and
// cutting the stream elsewhere changes nothing.
func FuzzReader(f *testing.F) {
	for _, seed := range []string{
		`{"QMP": {"version": {"qemu": {"micro": 13, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}}`,
		`{"return": {"status": "running", "running": true}, "id": "rec:1"}`,
		`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "BALLOON_CHANGE", "data": {"actual": 1}}{"return": {}}`,
		`{"id": 7, "error": {"class": "GenericError", "desc": "JSON parse error"}}`,
		"\xff{\"return\": 4711}\n", `[[[[`, `{"return": `, `{}`, `null`, `{"error": null}`, `{"event": 1}`, `{"error": []}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		whole := readAll(t, bytes.NewReader(stream))
		bytewise := readAll(t, iotest.OneByteReader(bytes.NewReader(stream)))
		if len(whole) != len(bytewise) {
			t.Errorf("%d messages at once, %d by the byte", len(whole), len(bytewise))
		}
		for _, m := range whole {
			if m.Greeting == nil && m.Event == "" && !m.IsReply() {
				t.Errorf("message of no kind: %+v", m)
			}
		}
	})
}

func readAll(t *testing.T, src io.Reader) []Message {
	t.Helper()
	r := NewReader(src)
	var all []Message
	for {
		m, err := r.Next()
		if err != nil {
			return all
		}
		all = append(all, m)
	}
}
