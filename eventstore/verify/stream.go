package verify

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"sync"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/pipeops/pipeops/domain"
)

// blockSize is how much of a file one goroutine takes at once, in bytes; a line that is cut goes to the next.
const blockSize = 256 << 10

// block is a part of the events, read, hashed and handed on in order.
type block struct {
	text  []byte
	lines []hashed
	err   error         // of reading; of nothing else
	done  chan struct{} // closed when lines are there
}

// hashed is a line that was taken apart.
type hashed struct {
	event domain.Recorded
	leaf  tlog.Hash
	err   error
}

// lineError is a line that could not be read.
type lineError struct {
	line  int64           // from 1
	event domain.Recorded // as far as it could
	err   error
}

func (e *lineError) reason() string { return fmt.Sprintf("line %d: %v", e.line, e.err) }
func (e *lineError) Error() string  { return e.reason() }
func (e *lineError) Unwrap() error  { return e.err }

// events gives each event and its leaf's hash in order. All processors read and hash; each is called by one goroutine.
func events(export fs.FS, each func(domain.Recorded, tlog.Hash) error) error {
	file, err := export.Open(EventsFile)
	if err != nil {
		return fmt.Errorf("open the export's events: %w", err)
	}
	defer file.Close() //nolint:errcheck // it was only read
	workers := runtime.GOMAXPROCS(0)
	work := make(chan *block, workers)      // so many blocks wait at most
	ordered := make(chan *block, 2*workers) // and so many are in memory
	stop := make(chan struct{})
	var group sync.WaitGroup
	defer group.Wait()
	defer close(stop)
	group.Go(func() { cut(file, work, ordered, stop) })
	for range workers {
		group.Go(func() {
			var room []byte
			for b := range work {
				room = b.hash(room)
			}
		})
	}
	line := int64(0)
	for b := range ordered {
		<-b.done
		for _, l := range b.lines {
			line++
			if l.err != nil {
				return &lineError{line, l.event, l.err}
			}
			if err := each(l.event, l.leaf); err != nil {
				return err
			}
		}
		if b.err != nil {
			return fmt.Errorf("read the export's events: %w", b.err)
		}
	}
	return nil
}

// cut reads blocks of whole lines.
func cut(file io.Reader, work, ordered chan<- *block, stop <-chan struct{}) {
	defer close(work)
	defer close(ordered)
	var rest []byte
	for end := false; !end; {
		b := &block{text: append(make([]byte, 0, blockSize+len(rest)), rest...), done: make(chan struct{})}
		n, err := io.ReadFull(file, b.text[len(rest):cap(b.text)])
		b.text = b.text[:len(rest)+n]
		end = err != nil
		if end && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			b.err = err
		}
		rest = nil
		if i := bytes.LastIndexByte(b.text, '\n'); !end && i < len(b.text)-1 {
			rest, b.text = b.text[i+1:], b.text[:i+1]
		}
		if len(rest) > maxLine { // it is told as a bad line
			b.text, rest, end = append(b.text, rest...), nil, true
		}
		for _, to := range []chan<- *block{ordered, work} {
			select {
			case to <- b:
			case <-stop:
				return
			}
		}
	}
}

// hash takes the lines apart.
func (b *block) hash(room []byte) []byte {
	defer close(b.done)
	for rest := b.text; len(rest) > 0; {
		line, after, whole := bytes.Cut(rest, []byte{'\n'})
		rest = after
		h := hashed{err: errCut}
		if whole {
			var body [32]byte
			if h.event, body, room, h.err = readLine(line, room); h.err == nil {
				h.leaf, room = leafHash(room, h.event, body)
			}
		}
		if b.lines = append(b.lines, h); h.err != nil {
			break
		}
	}
	return room
}

var errCut = errors.New("the file ends within the line, or the line is too long")

// leafFile holds the leaves of the server's tree.
type leafFile struct {
	file fs.File // nil: there is none
	read *bufio.Reader
}

func openLeaves(export fs.FS) (*leafFile, error) {
	file, err := export.Open(LeavesFile)
	if errors.Is(err, fs.ErrNotExist) {
		return &leafFile{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the export's leaves: %w", err)
	}
	return &leafFile{file, bufio.NewReaderSize(file, blockSize)}, nil
}

func (l *leafFile) close() {
	if l.file != nil {
		_ = l.file.Close() // it was only read
	}
}

// check compares the next leaf.
func (l *leafFile) check(position int64, leaf tlog.Hash) error {
	if l.file == nil {
		return nil
	}
	var want tlog.Hash
	switch _, err := io.ReadFull(l.read, want[:]); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &Error{Position: position, File: LeavesFile, Reason: "its leaf hash is missing"}
	case err != nil:
		return fmt.Errorf("read the export's leaves: %w", err)
	case want != leaf:
		return &Error{Position: position, File: EventsFile, Reason: "the event is not the one whose leaf hash is in the server's tree"}
	}
	return nil
}

func (l *leafFile) end() error {
	if l.file == nil {
		return nil
	}
	if _, err := l.read.ReadByte(); !errors.Is(err, io.EOF) {
		if err != nil {
			return fmt.Errorf("read the export's leaves: %w", err)
		}
		return &Error{File: LeavesFile, Reason: "it has more leaf hashes than there are events"}
	}
	return nil
}
