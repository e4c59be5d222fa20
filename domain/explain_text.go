package domain

import (
	"fmt"
	"strings"
	"time"
)

// Text renders an explanation for a terminal, with times of a place: newest first, one line a step.
func (w Why) Text(in *time.Location) string {
	var b strings.Builder
	name := w.ServiceName + " in " + w.EnvironmentName + " of " + w.ProjectName
	if w.Release == nil {
		fmt.Fprintf(&b, "%s runs nothing yet (as of %s).\n", name, w.AsOf)
	} else {
		fmt.Fprintf(&b, "%s runs %s since %s (as of %s).\nImage: %s\nRelease: %s, configuration %d\n\nBecause, newest first:\n", name,
			shortCommit(w.Release.Commit), clock(w.Since, in)+" "+w.Since.In(in).Format("MST"), w.AsOf, w.Release.Image, w.Release.ID, w.Release.ConfigVersion)
		writeSteps(&b, w.Steps, in)
	}
	if len(w.Beside) > 0 {
		b.WriteString("\nNot running, newest first:\n")
	}
	for _, a := range w.Beside {
		fmt.Fprintf(&b, "\n%s %s: %s\n", a.Subject, shortCommit(a.Commit), a.Text)
		writeSteps(&b, a.Steps, in)
		for _, s := range a.Steps {
			if s.Diagnosis != nil {
				b.WriteString("\n" + indented(s.Diagnosis.String()))
			}
		}
	}
	if w.More > 0 {
		fmt.Fprintf(&b, "\nand %d older ones\n", w.More)
	}
	return b.String()
}

func clock(t Time, in *time.Location) string { return t.In(in).Format("2006-01-02 15:04:05") }

func writeSteps(b *strings.Builder, steps []Link, in *time.Location) {
	rows := make([][]string, len(steps))
	widths := make([]int, 4)
	for i, s := range steps {
		rows[i] = []string{clock(s.At, in), s.Cursor.String(), s.Text, s.Who, s.Subject}
		for j := range widths {
			widths[j] = max(widths[j], width(rows[i][j]))
		}
	}
	for _, r := range rows {
		b.WriteString(" ")
		for j, cell := range r {
			b.WriteString(" " + cell)
			if j < len(widths) {
				b.WriteString(strings.Repeat(" ", widths[j]-width(cell)+1))
			}
		}
		b.WriteString("\n")
	}
}

func width(text string) int { return len([]rune(text)) }

func indented(text string) string {
	lines := strings.SplitAfter(text, "\n")
	for i, l := range lines {
		if strings.TrimSpace(l) != "" {
			lines[i] = "    " + l
		}
	}
	return strings.Join(lines, "")
}
