package domain

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

//go:generate go test -run ^TestTheReferenceOfEventsIsUpToDate$ . -update-reference

const referenceFile = "../docs/events.md"

// streams in the order of the reference: their form, the function that names them, and what may stand in them.
var streams = []struct {
	form, function string
	holds          func(Event) bool
}{
	{"project-name/<name>", "ProjectNameStream", is[ProjectNameEvent]},
	{"project/<project>", "ProjectStream", is[ProjectEvent]},
	{"push/<project>/<source>/<delivery>", "PushStream", is[PushEvent]},
	{"ref/<project>/<hash of the ref>", "RefStream", is[RefEvent]},
	{"build/<build>", "BuildStream", is[BuildEvent]},
	{"slot/<environment>/<service>", "SlotStream", is[SlotEvent]},
	{"deployment/<deployment>", "DeploymentStream", is[DeploymentEvent]},
	{"worker/<worker>", "WorkerStream", is[WorkerEvent]},
	{"operation/<day>", "OperationStream", is[OperationEvent]},
}

func is[E Event](e Event) bool { _, ok := e.(E); return ok }

func TestTheReferenceOfEventsIsUpToDate(t *testing.T) {
	t.Parallel()
	want := newReference(t).write(t)
	if *updateReference {
		if err := os.WriteFile(referenceFile, want, 0o644); err != nil { //nolint:gosec // a document
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(referenceFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/events.md doesn't say what the Go types say: run `go generate ./domain`")
	}
}

// reference is what the source says about the types that stand in events.
type reference struct {
	types   map[string]*ast.TypeSpec
	docs    map[string]string // of types and functions, as one line
	structs []string          // that fields need, in the order in which they were met
	texts   []string          // the same of named types that are no structs
}

func newReference(t *testing.T) *reference {
	t.Helper()
	r := &reference{types: map[string]*ast.TypeSpec{}, docs: map[string]string{}}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range parsed.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil {
					r.docs[d.Name.Name] = line(d.Doc)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if s, ok := spec.(*ast.TypeSpec); ok {
						r.types[s.Name.Name] = s
						r.docs[s.Name.Name] = line(s.Doc) + line(d.Doc)
					}
				}
			}
		}
	}
	return r
}

func (r *reference) write(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	b.WriteString(`<!-- Generated from the Go types in domain by "go generate ./domain"; DO NOT EDIT. -->

# Events

Every event that PipeOps records, by the stream that it stands in. A body is JSON, stored and exported byte for byte. A type's name and form are for ever: fields are only added, and a reader ignores those that it doesn't know. ` +
		"`pipeops events --json`" + ` prints a line for each event: its [envelope](#the-envelope), with the body as ` + "`data`" + `.

Times are RFC 3339 with six digits and Z. There are no floating-point numbers. A field of a person is stored as ` + "`{\"enc\":…,\"sub\":…}`" + `: encrypted under the key of its subject, and unreadable once that key is erased. "May be absent" means that the zero value isn't written.
`)
	r.envelope(t, &b)
	for _, s := range streams {
		fmt.Fprintf(&b, "\n## `%s`\n\n%s\n", s.form, sentence(r.docs[s.function], s.function))
		for _, name := range Types() {
			if e, err := Zero(name); err == nil && s.holds(e) {
				r.event(t, &b, name)
			}
		}
	}
	b.WriteString("\n## Objects inside of events\n")
	for i := 0; i < len(r.structs); i++ { //nolint:intrange // it grows
		name := r.structs[i]
		fmt.Fprintf(&b, "\n### %s\n\n%s\n\n", name, sentence(r.docs[name], name))
		r.fields(t, &b, name)
	}
	b.WriteString("\n## Ids and names\n\n| type | meaning |\n|---|---|\n")
	for _, name := range r.texts {
		fmt.Fprintf(&b, "| %s | %s |\n", name, r.meaning(t, name, "", r.comment(name)))
	}
	return b.Bytes()
}

// envelope writes what stands around every body.
func (r *reference) envelope(t *testing.T, b *bytes.Buffer) {
	t.Helper()
	b.WriteString("\n## The envelope\n\nAn export has the same, without `cursor` and with the hash of the body: see `docs/architecture.md`.\n\n")
	r.fields(t, b, "Line")
	writeExample(t, b, "Example", exampleLine(t))
}

func (r *reference) event(t *testing.T, b *bytes.Buffer, name string) {
	t.Helper()
	fmt.Fprintf(b, "\n### %s\n\n%s", name, sentence(r.docs[name], name))
	for _, class := range slices.Sorted(maps.Keys(reportable)) {
		if slices.Contains(reportable[class], name) {
			fmt.Fprintf(b, " Reported by a %s worker.", class)
		}
	}
	fmt.Fprintf(b, " Schema version %d.\n\n", SchemaVersion(name))
	r.fields(t, b, name)
	for version := 1; version < SchemaVersion(name); version++ { // nobody writes these any more
		golden, err := os.ReadFile(filepath.Join("testdata", "events", fmt.Sprintf("%s.v%d.json", name, version)))
		if err != nil {
			t.Fatal(err)
		}
		writeExample(t, b, fmt.Sprintf("Form of version %d", version), golden)
	}
	writeExample(t, b, fmt.Sprintf("Example, version %d", SchemaVersion(name)), exampleBody(t, name))
}

func writeExample(t *testing.T, b *bytes.Buffer, title string, text []byte) {
	t.Helper()
	var example bytes.Buffer
	if err := json.Indent(&example, text, "", "  "); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(b, "\n<details><summary>%s</summary>\n\n```json\n%s\n```\n\n</details>\n", title, &example)
}

// fields writes the table of a struct's fields.
func (r *reference) fields(t *testing.T, b *bytes.Buffer, name string) {
	t.Helper()
	s, ok := r.types[name].Type.(*ast.StructType)
	if !ok {
		t.Fatalf("%s is no struct", name)
	}
	var rows strings.Builder
	for _, f := range s.Fields.List {
		if len(f.Names) == 0 || f.Tag == nil {
			continue
		}
		key, options, _ := strings.Cut(reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("json"), ",")
		meaning := line(f.Doc) + line(f.Comment)
		if id, ok := f.Type.(*ast.Ident); ok && meaning == "" {
			meaning = r.comment(id.Name)
		}
		meaning = r.meaning(t, name, f.Names[0].Name, meaning)
		if options != "" {
			meaning += "; may be absent"
		}
		fmt.Fprintf(&rows, "| `%s` | %s | %s |\n", key, r.form(f.Type), meaning)
	}
	if rows.Len() == 0 {
		b.WriteString("It has no fields.\n")
		return
	}
	b.WriteString("| field | type | meaning |\n|---|---|---|\n" + rows.String())
}

// comment is what stands behind a type's definition.
func (r *reference) comment(name string) string {
	if s, ok := r.types[name]; ok {
		return line(s.Comment)
	}
	return ""
}

// meaning gives a text as a cell of a table, and fails the test where there is none.
func (r *reference) meaning(t *testing.T, name, field, text string) string {
	t.Helper()
	if text == "" {
		t.Errorf("%s has no meaning: say what it holds, with its unit and form, in a comment behind it", strings.TrimSuffix(name+"."+field, "."))
	}
	return strings.NewReplacer("|", `\|`, "<", `\<`).Replace(text)
}

// forms are those of types that aren't written as what they are made of.
var forms = map[string]string{
	"string": "text", "bool": "true or false", "int": "integer", "int64": "integer", "byte": "integer",
	"Time": "time", "Seconds": "integer, seconds", "Milliseconds": "integer, milliseconds", "Personal": "text of a person", "Cursor": "text, `<log epoch>.<position>`",
}

// form words a field's type.
func (r *reference) form(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return r.form(e.X)
	case *ast.ArrayType:
		if id, ok := e.Elt.(*ast.Ident); ok && id.Name == "byte" {
			return "bytes, base64"
		}
		return "list of " + r.form(e.Elt)
	case *ast.MapType:
		return "object, " + r.form(e.Key) + " to " + r.form(e.Value)
	case *ast.Ident:
		if form, ok := forms[e.Name]; ok {
			return form
		}
		if _, ok := r.types[e.Name].Type.(*ast.StructType); ok {
			if !slices.Contains(r.structs, e.Name) {
				r.structs = append(r.structs, e.Name)
			}
			return "[" + e.Name + "](#" + strings.ToLower(e.Name) + ")"
		}
		if !slices.Contains(r.texts, e.Name) {
			r.texts = append(r.texts, e.Name)
		}
		return r.form(r.types[e.Name].Type) + ", [" + e.Name + "](#ids-and-names)"
	case *ast.SelectorExpr:
		if e.Sel.Name == "RawMessage" {
			return "object"
		}
	}
	return fmt.Sprintf("%T", e)
}

// line gives a comment as one line.
func line(c *ast.CommentGroup) string {
	if c == nil {
		return ""
	}
	return strings.Join(strings.Fields(c.Text()), " ")
}

// sentence turns "BuildRequested wants an image" into "Wants an image".
func sentence(doc, name string) string {
	rest := strings.TrimPrefix(doc, name+" ")
	if rest == "" {
		return ""
	}
	return strings.ToUpper(rest[:1]) + rest[1:]
}
