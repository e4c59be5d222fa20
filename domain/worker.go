package domain

// WorkerEvent may stand in a worker's stream.
//
//sumtype:decl
type WorkerEvent interface {
	Event
	workerEvent()
}

type inWorker struct{}

func (inWorker) workerEvent() {}

// WorkerEnrolled lets a worker claim work of its class.
type WorkerEnrolled struct {
	fact
	inWorker

	Worker    WorkerID `json:"worker"`
	Class     string   `json:"class"`     // "build" or "deploy"
	PublicKey []byte   `json:"publicKey"` // Ed25519, 32 bytes; claims are signed with it
}

// Worker is an enrolled worker.
type Worker struct {
	Class     string
	PublicKey []byte
}

// Evolve applies an event.
func (w *Worker) Evolve(e WorkerEvent) {
	switch e := e.(type) {
	case WorkerEnrolled:
		w.Class, w.PublicKey = e.Class, e.PublicKey
	}
}

// EnrollWorker lets a worker in, or gives it another key.
type EnrollWorker struct {
	Worker    WorkerID
	Class     string
	PublicKey []byte
}

// Reads implements Command.
func (c EnrollWorker) Reads(State) []Stream { return []Stream{WorkerStream(c.Worker)} }

// Decide implements Command.
func (c EnrollWorker) Decide(s State) ([]Change, error) {
	if c.Class != "build" && c.Class != "deploy" {
		return nil, &Refusal{Code: "BAD_CLASS", Field: "class", Message: "unknown class " + c.Class, Fix: "use build or deploy"}
	}
	if len(c.PublicKey) != 32 {
		return nil, &Refusal{Code: "BAD_KEY", Field: "publicKey", Message: "an Ed25519 public key has 32 bytes", Fix: "let pipeops worker make the key"}
	}
	w := Of[Worker](s, WorkerStream(c.Worker))
	if w.Class == c.Class && string(w.PublicKey) == string(c.PublicKey) {
		return nil, nil
	}
	return []Change{{WorkerStream(c.Worker), WorkerEnrolled{Worker: c.Worker, Class: c.Class, PublicKey: c.PublicKey}}}, nil
}
