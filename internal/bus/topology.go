package bus

import (
	"hash/fnv"
	"strconv"

	"github.com/pipeops/pipeops/domain"
)

// Partitions is the number of report queues. Reports of one subject share one.
// Changing it needs empty report queues.
const Partitions = 8

// exchanges and their types. Durable, all of them declared by every process,
// with all queues, so that whoever comes first loses nothing.
var exchanges = map[string]string{
	"pipeops.jobs":      "direct",
	"pipeops.claims":    "direct",
	"pipeops.replies":   "direct",
	"pipeops.reports":   "direct",
	"pipeops.logs":      "direct",
	"pipeops.committed": "topic", // outsiders bind their own queues here
	"pipeops.dead":      "direct",
	returns:             "direct",
}

// returns is where every kept queue is bound by its name, so that a message that
// failed comes back to its own queue only.
const returns = "pipeops.returns"

const deadQueue = "jobs.dead"

// queue is a queue with its binding, and what happens to messages that fail.
type queue struct {
	name     string
	exchange string
	key      string
	kind     queueKind
	single   bool // one active consumer among all processes
	readers  int  // messages handled at once by one consumer

	inPlace bool // a failed message is tried again before its successors; else behind them
	tries   int  // deliveries at most; 0: the bus's MaxDeliveries; negative: no limit
	drop    bool // what failed too often is dropped; else it goes to jobs.dead
}

// bindings are the routes that lead to q.
func (q queue) bindings() []route {
	all := []route{{exchange: q.exchange, key: q.key}}
	if q.kind == kept {
		all = append(all, returnRoute(q.name))
	}
	return all
}

type queueKind int

const (
	kept      queueKind = iota // survives the broker: a quorum queue
	fleeting                   // old messages are worthless: bounded in time and number, oldest dropped
	exclusive                  // lives as long as its consumer's connection
)

// queues are the shared ones. Reply queues come and go with their workers.
var queues = func() map[string]queue {
	all := map[string]queue{}
	for _, q := range []queue{
		{name: "jobs.build", exchange: "pipeops.jobs", key: string(KindBuild), readers: 1},
		{name: "jobs.deploy", exchange: "pipeops.jobs", key: string(KindDeploy), readers: 1},
		{name: "claims", exchange: "pipeops.claims", key: "claim", readers: 4},
		{name: "heartbeats", exchange: "pipeops.claims", key: "heartbeat", kind: fleeting, readers: 1, tries: 1, drop: true},
		{name: "logs", exchange: "pipeops.logs", key: "chunk", readers: 4},
		{name: deadQueue, exchange: "pipeops.dead", key: "dead", readers: 1, tries: -1},
	} {
		all[q.name] = q
	}
	for i := range Partitions {
		name := partition(i)
		all[name] = queue{name: name, exchange: "pipeops.reports", key: name, single: true, readers: 1, inPlace: true}
	}
	return all
}()

func partition(i int) string { return "ingest." + strconv.Itoa(i) }

const repliesPrefix = "replies."

// replies is the queue of one incarnation of a worker.
func replies(incarnation string) queue {
	return queue{
		name: repliesPrefix + incarnation, exchange: "pipeops.replies", key: incarnation,
		kind: exclusive, readers: 1, inPlace: true, drop: true,
	}
}

// route is where a message goes.
type route struct {
	exchange string
	key      string
}

// returnRoute leads a message back to its queue.
func returnRoute(queue string) route { return route{exchange: returns, key: queue} }

func jobRoute(k Kind) route { return route{exchange: "pipeops.jobs", key: string(k)} }

// reportRoute hashes the subject; a subject is one stream, so this is the
// partition of the stream.
func reportRoute(a domain.AttemptID) (route, error) {
	subject, _, err := a.Split()
	if err != nil {
		return route{}, err
	}
	h := fnv.New32a()
	h.Write([]byte(subject))
	return route{exchange: "pipeops.reports", key: partition(int(h.Sum32() % Partitions))}, nil
}

// survives tells whether a message there must outlive the broker.
func (r route) survives() bool { return r != heartbeatRoute && r.exchange != "pipeops.replies" }

// needsQueue tells whether a message there is lost when no queue is bound. Committed events are offered to outsiders, who
// may not be there, and answers to workers, who may have gone.
func (r route) needsQueue() bool {
	return r.exchange != "pipeops.committed" && r.exchange != "pipeops.replies"
}

var (
	claimRoute     = route{exchange: "pipeops.claims", key: "claim"}
	heartbeatRoute = route{exchange: "pipeops.claims", key: "heartbeat"}
	logRoute       = route{exchange: "pipeops.logs", key: "chunk"}
	deadRoute      = route{exchange: "pipeops.dead", key: "dead"}
)
