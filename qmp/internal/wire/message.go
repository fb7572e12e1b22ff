// Package wire is the part that QMP and the guest agent's dialect have in
// common: JSON messages over a unix socket, with deadlines.
package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxMessage bounds what one message may occupy in memory. The longest that
// QEMU is known to send is query-qmp-schema with 234,071 bytes; the guest
// agent, which the guest controls, may try more.
const MaxMessage = 16 << 20

// Message is anything that QEMU may send: a greeting, an event, or a reply
// that carries either Return or Error.
type Message struct {
	Greeting json.RawMessage `json:"QMP"`
	Event    string          `json:"event"`
	Return   json.RawMessage `json:"return"`
	Error    *Error          `json:"error"`
	ID       json.RawMessage `json:"id"`
}

// IsReply reports whether the message answers a command.
func (m *Message) IsReply() bool { return m.Return != nil || m.Error != nil }

// Request is a command as it goes over the wire.
type Request struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        string `json:"id,omitempty"`
}

// Encode makes one line of a request.
func (r Request) Encode() ([]byte, error) {
	line, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode arguments of %s: %w", r.Execute, err)
	}
	return append(line, '\n'), nil
}

// Reader takes messages off a stream, however they are cut into packets or
// lines.
type Reader struct {
	src   budget
	dec   *json.Decoder
	limit int // of one message
}

// NewReader reads from r.
func NewReader(r io.Reader) *Reader {
	rd := &Reader{src: budget{from: r}, limit: MaxMessage}
	rd.dec = json.NewDecoder(&rd.src)
	return rd
}

// Next waits for one whole message. After an error the stream is of no use.
func (r *Reader) Next() (Message, error) {
	r.src.left = r.limit
	var raw json.RawMessage
	if err := r.dec.Decode(&raw); err != nil {
		return Message{}, decodeError(err)
	}
	return Parse(raw)
}

// Parse makes a message of one JSON value.
func Parse(raw []byte) (Message, error) {
	var m Message
	if err := json.Unmarshal(raw, &m); err != nil {
		return Message{}, decodeError(err)
	}
	if m.Greeting == nil && m.Event == "" && !m.IsReply() {
		return Message{}, fmt.Errorf("%w: %.80q", ErrProtocol, bytes.TrimSpace(raw))
	}
	return m, nil
}

func decodeError(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	if errors.As(err, &syntax) || errors.As(err, &kind) {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return err
}

// budget is a reader that refuses to go on once a message got too long.
type budget struct {
	from io.Reader
	left int
}

func (b *budget) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, ErrTooLong
	}
	n, err := b.from.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
