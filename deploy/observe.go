package deploy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"

	"github.com/pipeops/pipeops/deploy/diagnose"
	"github.com/pipeops/pipeops/deploy/watch"
	"github.com/pipeops/pipeops/domain"
)

const (
	// askEvery is how often the API server is asked for what the informers don't have.
	askEvery = 2 * time.Second
	// maxAsked bounds of how many objects cluster events are read.
	maxAsked = 4
	// maxLog bounds what is read of a log, in bytes, and logLines in lines.
	maxLog   = 64 << 10
	logLines = 20
)

// look takes the caches' word, and asks the API server when they don't know what was applied: they may be late, or the
// workload may be gone.
func (r *rollout) look(ctx context.Context, key watch.Key, applied *appsv1.Deployment) watch.Progress {
	p := r.watcher.Look(key).Progress(applied)
	if p.State != watch.Unseen || time.Since(r.asked) < askEvery {
		return p
	}
	r.asked = time.Now()
	live, err := watch.Live(ctx, r.client, key)
	if err != nil {
		return p
	}
	if live.Workload == nil || live.Workload.UID != applied.UID {
		p.State = watch.Replaced
		return p
	}
	return live.Progress(applied)
}

// evidence adds the cluster events of what isn't well. Events only explain, so failing to read them changes nothing.
func (r *rollout) evidence(ctx context.Context, p watch.Progress) diagnose.Evidence {
	now := time.Now()
	if ill := illOf(p); len(ill) > 0 && now.Sub(r.askedEvents) >= askEvery {
		r.askedEvents = now
		r.events = nil
		for _, uid := range ill {
			of := fields.OneTermEqualSelector("involvedObject.uid", string(uid)).String()
			found, err := r.client.CoreV1().Events(r.request.Namespace).List(ctx, metav1.ListOptions{FieldSelector: of})
			if err != nil {
				r.log.DebugContext(ctx, "cluster events could not be read", "attempt", r.grant.Attempt, "err", err)
				break
			}
			for i := range found.Items {
				r.events = append(r.events, &found.Items[i])
			}
		}
	}
	return diagnose.Evidence{ReplicaSet: p.ReplicaSet, Pods: p.Pods, Events: r.events, Now: now}
}

// illOf names some pods that aren't ready.
func illOf(p watch.Progress) []types.UID {
	var out []types.UID
	for _, pod := range p.Pods {
		ready := false
		for _, c := range pod.Status.Conditions {
			ready = ready || c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		}
		if !ready && len(out) < maxAsked {
			out = append(out, pod.UID)
		}
	}
	return out
}

// progress reports where the rollout stands, if that is new and the last report is a beat ago.
func (r *rollout) progress(p watch.Progress, message string, now time.Time) {
	e := domain.RolloutProgressed{
		Wanted: p.Wanted, Updated: p.Updated, Ready: p.Ready, Available: p.Available,
		Message: strings.Join(append(slices.Clip(r.notes), nonempty(message)...), "; "),
	}
	if p.State == watch.Unseen || e == r.told || now.Sub(r.toldAt) < beat {
		return
	}
	r.told, r.toldAt = e, now
	r.attempt.Report(e)
}

func nonempty(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

func shown(p watch.Progress) string {
	return fmt.Sprintf("%d of %d pods of the release are available, %d ready, %d in the Service; %d others still exist", p.Available, p.Wanted, p.Ready, p.Serving, p.Trailing)
}

// explained makes the verdict a failure, with the last lines of the log that explains it.
func (r *rollout) explained(ctx context.Context, v diagnose.Verdict) *failure {
	d := v.Diagnosis
	if v.Log != nil {
		lines := int64(logLines)
		limit := int64(maxLog)
		log, err := r.client.CoreV1().Pods(r.request.Namespace).GetLogs(v.Log.Pod, &corev1.PodLogOptions{
			Container: v.Log.Container, Previous: v.Log.Previous, TailLines: &lines, LimitBytes: &limit,
		}).DoRaw(ctx)
		if err != nil {
			log = []byte(v.Log.Kept)
		}
		d.Log = diagnose.Tail(string(log))
	}
	return &failure{diagnosis: d}
}
