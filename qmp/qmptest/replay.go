package qmptest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strings"
	"sync"
)

// Replay plays a conversation to each client, on a socket like QEMU's. It
// checks what it is sent: commands and arguments must be the recorded ones, in
// their order; ids may differ and are put into the replies. A client that says
// something else is disconnected, and Close tells.
type Replay struct {
	script Conversation
	srv    *server
	work   sync.WaitGroup

	mu       sync.Mutex // guards surprise
	surprise []error
}

// NewReplay listens at path. Requests must end with a newline.
func NewReplay(path string, script Conversation) (*Replay, error) {
	r := &Replay{script: script}
	srv, err := newServer(path, r.talk)
	if err != nil {
		return nil, fmt.Errorf("replay: %w", err)
	}
	r.srv = srv
	r.work.Go(srv.run)
	return r, nil
}

// Close ends the replay and returns what clients said that was not in the
// script.
func (r *Replay) Close() error {
	r.srv.close()
	r.work.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(r.surprise...)
}

func (r *Replay) talk(c net.Conn) {
	in := bufio.NewReader(c)
	var recorded, sent said
	for _, l := range r.script {
		if l.Dir == "<" {
			if _, err := c.Write(l.bytes(recorded, sent)); err != nil {
				return
			}
			continue
		}
		text, err := in.ReadString('\n')
		if err != nil {
			return
		}
		recorded, sent = parseSaid(l.Text), parseSaid(text)
		r.srv.heard(sent.Execute)
		if !sent.fits(recorded) {
			r.mu.Lock()
			r.surprise = append(r.surprise, fmt.Errorf("replay %s: got %s, want %s", r.srv.path, strings.TrimSpace(text), l.Text))
			r.mu.Unlock()
			return
		}
	}
	if rest, err := in.ReadString('\n'); err == nil {
		r.mu.Lock()
		r.surprise = append(r.surprise, fmt.Errorf("replay %s: got %s after the end", r.srv.path, strings.TrimSpace(rest)))
		r.mu.Unlock()
	}
}

// said is a request taken apart.
type said struct {
	Execute   string          `json:"execute"`
	Arguments map[string]any  `json:"arguments"`
	ID        json.RawMessage `json:"id"`
	text      string          // when it was no request
}

func parseSaid(text string) said {
	var s said
	if mark := strings.LastIndexByte(text, delimiter); mark >= 0 {
		text = text[mark+1:]
	}
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return said{text: strings.TrimSpace(text)}
	}
	return s
}

// syncID is the argument of guest-sync and guest-sync-delimited, which every
// client chooses itself.
func (s said) syncID() (any, bool) {
	if !strings.HasPrefix(s.Execute, "guest-sync") {
		return nil, false
	}
	return s.Arguments["id"], true
}

func (s said) fits(recorded said) bool {
	if s.Execute != recorded.Execute || s.text != recorded.text {
		return false
	}
	if _, sync := s.syncID(); sync {
		return true
	}
	return len(s.Arguments) == 0 && len(recorded.Arguments) == 0 || reflect.DeepEqual(s.Arguments, recorded.Arguments)
}

// bytes are those of a recorded message, with the client's id in the place of
// the recorded one.
func (l Line) bytes(recorded, sent said) []byte {
	text := strings.ReplaceAll(l.Text, "\u00ff", "\xff")
	if id, ok := sent.syncID(); ok {
		old, _ := json.Marshal(recorded.Arguments["id"]) // came from JSON
		own, _ := json.Marshal(id)
		text = strings.Replace(text, `"return": `+string(old), `"return": `+string(own), 1)
	}
	line := []byte(text)
	switch {
	case recorded.ID != nil:
		line = bytes.Replace(line, append([]byte(`"id": `), recorded.ID...), append([]byte(`"id": `), sent.ID...), 1)
	case sent.ID != nil && lacksID(line):
		line = append(append(append(bytes.TrimSuffix(line, []byte("}")), `, "id": `...), sent.ID...), '}')
	}
	return append(line, "\r\n"...)
}

// lacksID reports whether a line is a reply without id.
func lacksID(line []byte) bool {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(line, &members); err != nil {
		return false
	}
	return members["id"] == nil && (members["return"] != nil || members["error"] != nil)
}
