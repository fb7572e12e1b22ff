package scenario

import (
	"regexp"
	"sort"
	"strings"
)

// masks replace what differs from run to run.
var masks = []struct {
	what *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(`UPID:[^\s"',]+`), "<upid>"},
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "<uuid>"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d| UTC)?`), "<time>"},
	{regexp.MustCompile(`\b\d{3,9}-[0-9a-f]{8}\b`), "<id>"},
	{regexp.MustCompile(`\b(\d+h)?(\d+m)?\d+(\.\d+)?(ns|µs|ms|s)\b|\b(\d+h)?\d+m\b`), "<duration>"},
	{regexp.MustCompile(`\b(127|10)\.\d+\.\d+\.(\d+)(:\d+)?\b`), "<address $2>"},
	{regexp.MustCompile(`/tmp/[^\s:"',]+`), "<path>"},
	{regexp.MustCompile(`\.tmp\.\d+`), ".tmp.<n>"},
}

// mask makes a text that is the same in every run: ids and numbers of VMs get the names they have in the story.
func (r *Runner) mask(text string) string {
	promises := r.ledger.all()
	sort.Slice(promises, func(i, j int) bool { return len(promises[i].ID) > len(promises[j].ID) })
	for _, p := range promises {
		text = strings.ReplaceAll(text, p.ID, p.Alias)
	}
	for _, m := range masks {
		text = m.what.ReplaceAllString(text, m.by)
	}
	for _, p := range promises {
		text = regexp.MustCompile(`\b`+p.vmid()+`\b`).ReplaceAllString(text, "<number of "+p.Alias+">")
	}
	return text
}
