package ops

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDecisionsAreToldNewestFirst(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j.db")
	j, err := OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	then := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	var all []Decision
	for i, name := range []string{"a", "b", "c"} {
		all = append(all, Decision{
			At: then.Add(time.Duration(i) * time.Hour), Subject: Subject{Owner: "me", Name: name}, Act: "create",
			Message: name + " goes to pve1", Data: json.RawMessage(`{"node":"pve1"}`),
		})
	}
	if err := j.Decide(all...); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if j, err = OpenJournal(path); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	}()
	told := func(atMost int) string {
		var names []string
		err := j.Decisions(func(d Decision) bool {
			if string(d.Data) != `{"node":"pve1"}` || d.Act != "create" || d.Subject.Owner != "me" {
				t.Errorf("got %+v", d)
			}
			names = append(names, d.Subject.Name)
			return len(names) < atMost
		})
		if err != nil {
			t.Error(err)
		}
		return strings.Join(names, " ")
	}
	if got := told(9); got != "c b a" {
		t.Errorf("got %s", got)
	}
	if got := told(2); got != "c b" {
		t.Errorf("stopped after two, got %s", got)
	}
	var events []string
	if err := j.Events(0, func(ev Event) bool {
		events = append(events, string(ev.What)+" "+string(ev.Kind)+" "+ev.Message)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(events, ", "); got != "decided create a goes to pve1, decided create b goes to pve1, decided create c goes to pve1" {
		t.Errorf("events: %s", got)
	}
	if _, err := j.Prune(t.Context(), then.Add(90*time.Minute)); err != nil {
		t.Fatal(err)
	}
	if got := told(9); got != "c" {
		t.Errorf("after pruning: %s", got)
	}
}
