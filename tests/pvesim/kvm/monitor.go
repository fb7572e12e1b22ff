package kvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/pve-rigaud/pve-rigaud/qmp"
)

// message is anything QEMU sends: a greeting, a reply or an event.
type message struct {
	Greeting json.RawMessage `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	ID    uint64          `json:"id"`
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
}

// monitor is the private monitor of a machine: held as long as the machine
// lives, for commands and events. It is what qmeventd's connection is on a
// real node.
type monitor struct {
	conn    net.Conn
	onEvent func(event string, data json.RawMessage)
	work    sync.WaitGroup

	write sync.Mutex // keeps requests whole on conn

	mu      sync.Mutex              // guards all below
	pending map[uint64]chan message // by id of the request; 0 is the greeting
	next    uint64
	gone    error         // why there will be no more replies; nil as long as there are
	events  []message     // to be delivered
	wake    chan struct{} // has room for one: there is something new in events, or gone is set
}

// openMonitor negotiates with QEMU. close ends what it starts.
func openMonitor(ctx context.Context, conn net.Conn, onEvent func(string, json.RawMessage)) (*monitor, error) {
	greeting := make(chan message, 1)
	m := &monitor{
		conn: conn, onEvent: onEvent, next: 1,
		pending: map[uint64]chan message{0: greeting}, wake: make(chan struct{}, 1),
	}
	if onEvent == nil {
		m.onEvent = func(string, json.RawMessage) {}
	}
	m.work.Go(m.read)
	m.work.Go(m.deliver)
	if _, err := m.await(ctx, 0, "greeting", greeting); err != nil {
		m.close()
		return nil, err
	}
	if _, err := m.execute(ctx, "qmp_capabilities", nil); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// close ends the connection and waits for the last call of onEvent.
func (m *monitor) close() {
	_ = m.conn.Close() // the reader sees it
	m.work.Wait()
}

// read hands messages out until the connection ends.
func (m *monitor) read() {
	in := json.NewDecoder(m.conn)
	for {
		var msg message
		if err := in.Decode(&msg); err != nil {
			m.end(err)
			return
		}
		m.dispatch(msg)
	}
}

func (m *monitor) dispatch(msg message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if msg.Event != "" {
		m.events = append(m.events, msg)
		m.lockedWake()
		return
	}
	if waiting, ok := m.pending[msg.ID]; ok {
		delete(m.pending, msg.ID)
		waiting <- msg // has room for one
	}
}

func (m *monitor) lockedWake() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// end tells everybody that waits that nothing will come.
func (m *monitor) end(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gone = ErrGone
	if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		m.gone = fmt.Errorf("%w: %w", ErrGone, err)
	}
	for id, waiting := range m.pending {
		delete(m.pending, id)
		close(waiting)
	}
	m.lockedWake()
}

// deliver calls onEvent, also for what came before the end.
func (m *monitor) deliver() {
	for range m.wake {
		m.mu.Lock()
		events, gone := m.events, m.gone
		m.events = nil
		m.mu.Unlock()
		for _, e := range events {
			m.onEvent(e.Event, e.Data)
		}
		if gone != nil {
			return
		}
	}
}

// execute runs one command.
func (m *monitor) execute(ctx context.Context, command string, args any) (json.RawMessage, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	reply := make(chan message, 1)
	m.mu.Lock()
	if m.gone != nil {
		defer m.mu.Unlock()
		return nil, fmt.Errorf("%s: %w", command, m.gone)
	}
	id := m.next
	m.next++
	m.pending[id] = reply
	m.mu.Unlock()
	if err := m.send(ctx, command, args, id); err != nil {
		m.forget(id)
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	return m.await(ctx, id, command, reply)
}

func (m *monitor) send(ctx context.Context, command string, args any, id uint64) error {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return err
	}
	m.write.Lock()
	defer m.write.Unlock()
	deadline, _ := ctx.Deadline() // none: the zero time, which is none again
	if err := m.conn.SetWriteDeadline(deadline); err != nil {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	if _, err = m.conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return nil
}

func (m *monitor) forget(id uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pending, id)
}

// await waits for the reply to one request.
func (m *monitor) await(ctx context.Context, id uint64, command string, reply <-chan message) (json.RawMessage, error) {
	select {
	case msg, ok := <-reply:
		switch {
		case !ok:
			m.mu.Lock()
			defer m.mu.Unlock()
			return nil, fmt.Errorf("%s: %w", command, m.gone)
		case msg.Error != nil:
			return nil, &qmp.Error{Command: command, Class: msg.Error.Class, Desc: msg.Error.Desc}
		}
		return msg.Return, nil
	case <-ctx.Done():
		m.forget(id)
		return nil, fmt.Errorf("%s: %w", command, ctx.Err())
	}
}
