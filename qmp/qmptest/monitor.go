package qmptest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/pve-rigaud/pve-rigaud/qmp"
)

// monitor is the QMP side of a QEMU: one client's conversation, and the events.
type monitor struct {
	q   *QEMU
	srv *server

	mu     sync.Mutex // guards client, and keeps its messages whole
	client net.Conn   // gets events; nil before the negotiation
}

// talk serves one client.
func (mon *monitor) talk(c net.Conn) {
	defer mon.subscribe(nil)
	if !mon.q.pace(mon.srv, &mon.q.greetingDelay) || !mon.send(c, object{"QMP": object{"version": mon.q.cfg.version(), "capabilities": []string{}}}) {
		return
	}
	dec := json.NewDecoder(c)
	negotiated := false
	for {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			if bad := new(json.SyntaxError); !errors.As(err, &bad) || errors.Is(err, io.ErrUnexpectedEOF) {
				return
			}
			// QEMU's parser finds its way after that, Go's does not: drop
			// what has come so far and go on.
			var word string
			_, _ = fmt.Fscan(dec.Buffered(), &word)
			mon.send(c, reply(nil, nil, generic("JSON parse error, invalid keyword '%s'", word)))
			dec = json.NewDecoder(c)
			continue
		}
		quit, ok := mon.answer(c, raw, &negotiated)
		if quit {
			mon.q.stop(true)
		}
		if !ok || quit {
			return
		}
	}
}

// answer carries out one request. quit: the machine ends; ok: go on.
func (mon *monitor) answer(c net.Conn, raw json.RawMessage, negotiated *bool) (quit, ok bool) {
	r, err := parseRequest(raw)
	mon.srv.heard(r.command)
	if !mon.q.pace(mon.srv, &mon.q.replyDelay) {
		return false, false
	}
	var result any
	switch {
	case err != nil:
	case !*negotiated && r.command != "qmp_capabilities":
		err = refuse(r.command, qmp.ClassCommandNotFound, "Expecting capabilities negotiation with 'qmp_capabilities'")
	case r.command == "qmp_capabilities" && *negotiated:
		err = refuse(r.command, qmp.ClassCommandNotFound, "Capabilities negotiation is already complete, command ignored")
	case r.command == "qmp_capabilities":
		*negotiated, result = true, object{}
		mon.subscribe(c)
	default:
		result, err = mon.q.execute(r.command, r.arguments)
		quit = r.command == "quit" && err == nil
	}
	return quit, mon.send(c, reply(r.id, result, err))
}

// reply makes the message that answers a request.
func reply(id json.RawMessage, result any, err error) object {
	msg := object{}
	if id != nil {
		msg["id"] = id
	}
	refused := new(qmp.Error)
	if errors.As(err, &refused) {
		msg["error"] = refused
	} else {
		msg["return"] = result
	}
	return msg
}

func (mon *monitor) subscribe(c net.Conn) {
	mon.mu.Lock()
	defer mon.mu.Unlock()
	mon.client = c
}

func (mon *monitor) send(c net.Conn, msg object) bool {
	line, err := json.Marshal(msg)
	if err != nil {
		panic("qmptest: reply: " + err.Error()) // handlers return what can be marshalled
	}
	mon.mu.Lock()
	defer mon.mu.Unlock()
	_, err = c.Write(append(line, "\r\n"...))
	return err == nil
}

// tell gives an event to the client, if there is one. A client that does not
// read must not hold up the machine.
func (mon *monitor) tell(e event, now time.Time) {
	mon.mu.Lock()
	defer mon.mu.Unlock()
	if mon.client == nil {
		return
	}
	_ = mon.client.SetWriteDeadline(now.Add(time.Second))
	_, _ = mon.client.Write(append(e.marshal(now), "\r\n"...))
	_ = mon.client.SetWriteDeadline(time.Time{})
}
