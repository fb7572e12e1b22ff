package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// gap separates the columns of a table.
const gap = "  "

// table is what a person gets to see: remarks first, then aligned columns.
type table struct {
	remarks []string // lines of their own, such as why the rest is stale
	rows    [][]string
}

func newTable(columns ...string) *table { return &table{rows: [][]string{columns}} }

// remark adds a line at the top, if there is something to say.
func (t *table) remark(label, text string) {
	if text != "" {
		t.remarks = append(t.remarks, label+": "+printable(text))
	}
}

// add adds a row. An empty cell is shown as "-", but for the last column, which is for what is seldom there.
func (t *table) add(cells ...string) {
	for i := range cells {
		cells[i] = printable(cells[i])
		if cells[i] == "" && i < len(cells)-1 {
			cells[i] = "-"
		}
	}
	t.rows = append(t.rows, cells)
}

// write writes the table, with no column wider than it must be and no spaces at the ends of lines.
func (t *table) write(w io.Writer) error {
	var b bytes.Buffer
	for _, r := range t.remarks {
		b.WriteString(r + "\n")
	}
	widths := make([]int, len(t.rows[0]))
	for _, row := range t.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range t.rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)) + gap)
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	_, err := w.Write(b.Bytes())
	return err
}

// printable keeps names and errors, which others wrote, from doing something to a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case unicode.IsPrint(r):
			return r
		}
		return '?'
	}, s)
}

// span is how long something took or is ago, in one unit and never rounded up: 0.4s, 12s, 5m, 3h, 9d.
func span(ms int64) string {
	d := time.Duration(ms) * time.Millisecond
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Truncate(100*time.Millisecond).Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// gib is a number of bytes in GiB.
func gib(bytes uint64) string { return fmt.Sprintf("%.1f", float64(bytes)/(1<<30)) }
