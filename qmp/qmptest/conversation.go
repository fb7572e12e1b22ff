package qmptest

import (
	"bufio"
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"slices"
)

//go:embed recorded/qmp.jsonl
var recordedQMP []byte

//go:embed recorded/qga.jsonl
var recordedAgent []byte

// Line is one message of a recorded conversation, or a remark.
type Line struct {
	Dir  string `json:"dir"`  // ">" sent to QEMU, "<" came from it, "#" a remark
	Text string `json:"line"` // without line end; U+00FF stands for the byte 0xFF
}

// Conversation is what was said on one connection, in order.
type Conversation []Line

// RecordedQMP is a conversation with the QEMU 10 of a Proxmox VE 9.2 node.
func RecordedQMP() Conversation { return mustRead(recordedQMP) }

// RecordedAgent is a conversation with a guest agent 10 through that QEMU.
func RecordedAgent() Conversation { return mustRead(recordedAgent) }

func mustRead(recorded []byte) Conversation {
	c, err := ReadConversation(bytes.NewReader(recorded))
	if err != nil {
		panic("qmptest: " + err.Error()) // part of this package
	}
	return c
}

// ReadConversation reads one JSON object a line, {"dir": ">", "line": "..."},
// and leaves the remarks out.
func ReadConversation(r io.Reader) (Conversation, error) {
	var c Conversation
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 4<<20)
	for n := 1; lines.Scan(); n++ {
		var l Line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return nil, fmt.Errorf("recorded conversation, line %d: %w", n, err)
		}
		switch l.Dir {
		case "<", ">":
			c = append(c, l)
		case "#":
		default:
			return nil, fmt.Errorf("recorded conversation, line %d: direction %q", n, l.Dir)
		}
	}
	return c, lines.Err()
}

// Select makes the conversation of a client that sends the named commands:
// greeting and negotiation (or the agent's synchronization) as recorded, then
// each command with all that came until the next one. A command that is named
// twice is taken from its second recording.
func (c Conversation) Select(commands ...string) (Conversation, error) {
	exchanges := c.exchanges()
	selected := Conversation{}
	open := "guest-sync-delimited"
	if len(exchanges) > 0 && exchanges[0][0].Dir == "<" {
		selected = append(selected, exchanges[0]...)
		exchanges = exchanges[1:]
		open = "qmp_capabilities"
	}
	for n, name := range append([]string{open}, commands...) {
		i := slices.IndexFunc(exchanges, func(x Conversation) bool { return x[0].command() == name })
		if i < 0 {
			return nil, fmt.Errorf("recorded conversation: no (further) %s", name)
		}
		selected = append(selected, exchanges[i]...)
		from := i
		if n == 0 {
			from = 0 // what came before the opening is not of the conversation
		}
		exchanges = slices.Delete(exchanges, from, i+1)
	}
	return selected, nil
}

// exchanges cuts the conversation before each message that was sent.
func (c Conversation) exchanges() []Conversation {
	var parts []Conversation
	for _, l := range c {
		if l.Dir == ">" || len(parts) == 0 {
			parts = append(parts, nil)
		}
		last := &parts[len(parts)-1]
		*last = append(*last, l)
	}
	return parts
}

// command is the name of the command in a line, "" if it is none.
func (l Line) command() string {
	var r struct {
		Execute string `json:"execute"`
	}
	if err := json.Unmarshal([]byte(l.Text), &r); err != nil {
		return ""
	}
	return r.Execute
}
