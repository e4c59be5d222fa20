package webhook_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/handlers/commands"
)

func TestPushIsCommittedBeforeItIsAnswered(t *testing.T) {
	t.Parallel()
	b := setup(t)
	body := fixture(t, "push")
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	got := b.send(t, delivery{id: "72d3162e-cc78-11e3-81ab-4c9367dc0958", event: "push", body: body, headers: map[string]string{"traceparent": trace}})
	if got.code != http.StatusAccepted || got.Status != "accepted" || got.Reason != "" {
		t.Fatalf("answer %+v", got)
	}
	events, envelopes := b.recorded(t)
	actor := b.keys.Actor("github", "Codertocat")
	person := "Codertocat <21031067+Codertocat@users.noreply.github.com>"
	commit := "199eddf46df50de8d02e99bf1c5fdb4101338224"
	received := domain.PushReceived{
		Push: domain.PushID(got.Push), Project: project, Source: "github", Delivery: "72d3162e-cc78-11e3-81ab-4c9367dc0958",
		Ref: "refs/heads/master", Branch: "master", Before: "a10867b14bb761a232cd80139fbd4c0d33264240", Commit: commit,
		Pusher: domain.Personal{Text: person, Subject: actor}, Author: domain.Personal{Text: person, Subject: actor},
		Message:   domain.Personal{Text: "Update README", Subject: actor},
		Timestamp: domain.At(time.Date(2018, 6, 15, 20, 1, 51, 0, time.UTC)),
	}
	if len(events) != 2 {
		t.Fatalf("%d events recorded, want PushReceived and RefMoved", len(events))
	}
	if diff := cmp.Diff(received, events[0], cmpopts.IgnoreUnexported(domain.Personal{}, domain.PushReceived{})); diff != "" {
		t.Error(diff)
	}
	plain := sha256.Sum256([]byte(body)) // would tell who guesses what an erased person has sent
	if moved, ok := events[1].(domain.RefMoved); !ok || moved.After != commit || string(moved.Push) != got.Push || len(moved.Body) != 64 || moved.Body == hex.EncodeToString(plain[:]) {
		t.Errorf("second event %+v", events[1])
	}
	e := envelopes[0]
	if e.Actor != actor || e.CorrelationID != got.Push || e.ProjectID != project || e.Cursor.String() != got.Cursor || e.Trace != trace {
		t.Errorf("envelope %+v, answer %+v", e, got)
	}
	if bytes.Contains(e.Body, []byte("Codertocat")) || bytes.Contains(e.Body, []byte("Update README")) {
		t.Errorf("the body tells about persons in clear: %s", e.Body)
	}
	raw, err := b.deliveries.Get(t.Context(), got.Push)
	must(t, err)
	if string(raw.Raw) != body || raw.EventID != e.ID || raw.ContentType != "application/json" || raw.Project != project {
		t.Errorf("raw delivery: %d bytes of %s for event %s", len(raw.Raw), raw.ContentType, raw.EventID)
	}
}

func TestDeliveriesThatLeadToNothingAreRecordedWithTheReason(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, c := range []struct{ event, fixture, reason string }{
		{"ping", "pr_opened", "ping"},
		{"pull_request", "pr_opened", "not-a-push"},
		{"create", "branch_create", "not-a-push"},
		{"push", "push_branch_create", "other-branch"},
		{"push", "push_branch_delete", "branch-deleted"},
		{"push", "push_tag", "tag"},
		{"push", "push_tag_delete", "tag"},
	} {
		got := b.send(t, delivery{id: "d-" + c.event + "-" + c.fixture, event: c.event, body: fixture(t, c.fixture)})
		if got.code != http.StatusAccepted || got.Status != "ignored" || got.Reason != c.reason || got.Push == "" {
			t.Errorf("%s %s: answer %+v, want ignored: %s", c.event, c.fixture, got, c.reason)
		}
		events, _ := b.recorded(t)
		last, ok := events[len(events)-1].(domain.PushIgnored)
		if !ok || last.Reason != c.reason || last.Kind != c.event || string(last.Push) != got.Push {
			t.Errorf("%s %s: recorded %+v", c.event, c.fixture, events[len(events)-1])
		}
	}
}

func TestPushToAProjectThatIsNotFullyConfiguredIsAnsweredWithADiagnosis(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.commands.Execute(t.Context(), domain.CreateProject{ID: "prj_bare", Name: "bare", Settings: domain.ProjectSettings{Branch: "master"}},
		commands.Meta{CommandID: "create-bare", Actor: "act_test", At: time.Now(), Project: "prj_bare"})
	must(t, err)
	_, err = b.secrets.Set(t.Context(), "prj_bare", "webhook/github", []byte(secret))
	must(t, err)
	got := b.send(t, delivery{id: "d1", event: "push", body: fixture(t, "push"), path: "/webhooks/github/prj_bare"})
	if got.code != http.StatusAccepted || got.Reason != "not-configured" || got.Diagnosis == nil || len(got.Diagnosis.Fixes) < 3 {
		t.Errorf("answer %+v", got)
	}
}

func TestOnlyTheSecretsSignatureIsLetIn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.config.Log = slog.New(slog.DiscardHandler)
	body := fixture(t, "push")
	good := sign(secret, body)
	refused := answer{}
	for name, d := range map[string]delivery{
		"wrong secret":          {headers: map[string]string{"X-Hub-Signature-256": sign("another", body)}},
		"empty secret":          {headers: map[string]string{"X-Hub-Signature-256": sign("", body)}},
		"no signature":          {headers: map[string]string{"X-Hub-Signature-256": ""}},
		"empty digits":          {headers: map[string]string{"X-Hub-Signature-256": "sha256="}},
		"without its prefix":    {headers: map[string]string{"X-Hub-Signature-256": strings.TrimPrefix(good, "sha256=")}},
		"prefix only":           {headers: map[string]string{"X-Hub-Signature-256": "sha256"}},
		"one letter":            {headers: map[string]string{"X-Hub-Signature-256": "x"}},
		"cut":                   {headers: map[string]string{"X-Hub-Signature-256": good[:len(good)-2]}},
		"longer":                {headers: map[string]string{"X-Hub-Signature-256": good + "00"}},
		"SHA-1 header only":     {headers: map[string]string{"X-Hub-Signature-256": "", "X-Hub-Signature": good}},
		"of another body":       {headers: map[string]string{"X-Hub-Signature-256": sign(secret, body+" ")}},
		"unknown project":       {path: "/webhooks/github/prj_nobody"},
		"project without one":   {path: "/webhooks/github/prj_bare"},
		"broken body, unsigned": {body: "{", headers: map[string]string{"X-Hub-Signature-256": good}},
	} {
		d.id, d.event = "d1", "push"
		if d.body == "" {
			d.body = body
		}
		got := b.send(t, d)
		if got.code != http.StatusUnauthorized || got.Push != "" {
			t.Errorf("%s: answer %+v", name, got)
		}
		if got.header = nil; refused.code == 0 {
			refused = got
		}
		if diff := cmp.Diff(refused, got, cmp.AllowUnexported(answer{})); diff != "" {
			t.Errorf("%s is answered differently, which tells something: %s", name, diff)
		}
	}
	req := delivery{id: "d1", event: "push", body: body}.request(t, b.url)
	req.Header.Add("X-Hub-Signature-256", good)
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	must(t, err)
	must(t, res.Body.Close())
	if res.StatusCode != http.StatusUnauthorized {
		t.Errorf("two signatures: %d", res.StatusCode)
	}
	if events, _ := b.recorded(t); len(events) > 0 {
		t.Errorf("%d events recorded of refused deliveries", len(events))
	}
}

func TestTheSecretBeforeTheCurrentOneIsGoodForADay(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.secrets.Set(t.Context(), project, "webhook/github", []byte("rotated"))
	must(t, err)
	now := time.Now()
	var mu sync.Mutex
	b.config.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	server := b.serve(t, b.config)
	try := func(id, key string) int {
		body := fixture(t, "pr_opened")
		return send(t, server, delivery{id: id, event: "ping", body: body, headers: map[string]string{"X-Hub-Signature-256": sign(key, body)}}).code
	}
	if a, b := try("d1", "rotated"), try("d2", secret); a != 202 || b != 202 {
		t.Errorf("during the rotation: current %d, the one before %d", a, b)
	}
	mu.Lock()
	now = now.Add(25 * time.Hour)
	mu.Unlock()
	if a, b := try("d3", "rotated"), try("d4", secret); a != 202 || b != 401 {
		t.Errorf("a day later: current %d, the one before %d", a, b)
	}
}

func TestTheSameDeliveryFiftyTimesAtOnceOverTwoServersIsOnePush(t *testing.T) {
	t.Parallel()
	b := setup(t)
	servers := []string{b.url, b.serve(t, b.config)}
	body := fixture(t, "push")
	answers := make([]answer, 50)
	var wg sync.WaitGroup
	for i := range answers {
		wg.Go(func() { answers[i] = send(t, servers[i%2], delivery{id: "same", event: "push", body: body}) })
	}
	wg.Wait()
	for i, a := range answers {
		if a.code != http.StatusAccepted || a.Push != answers[0].Push || a.Status != "accepted" || a.Cursor != answers[0].Cursor {
			t.Errorf("answer %d: %+v, the first was %+v", i, a, answers[0])
		}
	}
	if events, _ := b.recorded(t); len(events) != 2 {
		t.Errorf("%d events recorded, want 2", len(events))
	}
	if again := b.send(t, delivery{id: "same", event: "push", body: body}); again.Push != answers[0].Push {
		t.Errorf("sent again later: %+v", again)
	}
}

func TestTheSameBodyUnderAnotherIDIsADuplicate(t *testing.T) {
	t.Parallel()
	b := setup(t)
	body := fixture(t, "push")
	first := b.send(t, delivery{id: "one", event: "push", body: body})
	second := b.send(t, delivery{id: "two", event: "push", body: body})
	if first.Status != "accepted" || second.Status != "ignored" || second.Reason != "duplicate" || second.Push == first.Push {
		t.Errorf("first %+v, second %+v", first, second)
	}
}

func TestDeliveryWithoutAUsableIDIsNamedByItsBody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	body := fixture(t, "push")
	first := b.send(t, delivery{event: "push", body: body})
	second := b.send(t, delivery{id: "../" + strings.Repeat("x", 300), event: "push", body: body})
	if first.Status != "accepted" || second.Push != first.Push {
		t.Errorf("first %+v, second %+v", first, second)
	}
	_, envelopes := b.recorded(t)
	if !strings.HasPrefix(string(envelopes[0].Stream), "push/prj_hello/github/mac-") {
		t.Errorf("stream %s", envelopes[0].Stream)
	}
}

func TestFormEncodedDeliveryIsReadToo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	form := url.Values{"payload": {fixture(t, "push")}}.Encode()
	got := b.send(t, delivery{id: "form", event: "push", body: form, headers: map[string]string{"Content-Type": "application/x-www-form-urlencoded"}})
	if got.Status != "accepted" {
		t.Errorf("answer %+v", got)
	}
}

func TestSignedButUnreadableDeliveriesAreNamedAndRecorded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	form := map[string]string{"Content-Type": "application/x-www-form-urlencoded"}
	for i, c := range []struct {
		d    delivery
		says string
	}{
		{delivery{event: "push", body: "{"}, "JSON"},
		{delivery{event: "push", body: ""}, "JSON"},
		{delivery{event: "issues", body: "<xml/>"}, "JSON"},
		{delivery{event: "", body: "{}"}, "X-GitHub-Event"},
		{delivery{event: "Push; drop", body: "{}"}, "X-GitHub-Event"},
		{delivery{event: "push", body: "{}"}, "ref isn't"},
		{delivery{event: "push", body: strings.Replace(fixture(t, "push"), "199eddf46df50de8d02e99bf1c5fdb4101338224", "main", 1)}, "after isn't"},
		{delivery{event: "push", body: strings.Replace(fixture(t, "push"), "refs/heads/master", `refs/heads/\u0000`, 1)}, "ref isn't"},
		{delivery{event: "push", body: "no=payload", headers: form}, "payload"},
		{delivery{event: "push", body: "payload=%zz", headers: form}, "form"},
	} {
		c.d.id = fmt.Sprint("broken-", i)
		got := b.send(t, c.d)
		if got.code != http.StatusBadRequest || got.Status != "refused" || !strings.Contains(got.Reason, c.says) || got.Push == "" {
			t.Errorf("%s %.20q: answer %+v, want a reason with %q", c.d.event, c.d.body, got, c.says)
		}
		events, _ := b.recorded(t)
		if len(events) != i+1 {
			t.Fatalf("%d events after %d deliveries", len(events), i+1)
		}
		if last := events[i].(domain.PushIgnored); last.Kind != "unparsable" || string(last.Push) != got.Push {
			t.Errorf("recorded %+v", last)
		}
	}
}

func TestBodyOver25MiBIsRefusedWhetherAnnouncedOrNot(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, ExpectContinueTimeout: time.Minute}}
	large := strings.Repeat(" ", 25<<20)
	for name, length := range map[string]int64{"announced": int64(len(large) + 1), "in chunks": -1} {
		req := delivery{id: "large", event: "push", body: "x"}.request(t, b.url)
		req.Body, req.ContentLength = io.NopCloser(io.MultiReader(strings.NewReader(large), strings.NewReader("x"))), length
		req.GetBody = nil
		if length > 0 {
			req.Header.Set("Expect", "100-continue") // else the answer races with what is still being sent
		}
		res, err := client.Do(req)
		must(t, err)
		must(t, res.Body.Close())
		if res.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: %s", name, res.Status)
		}
	}
	if got := b.send(t, delivery{id: "just", event: "ping", body: "x" + large[1:]}); got.code != http.StatusBadRequest {
		t.Errorf("25 MiB exactly, but no JSON: %+v", got)
	}
}

func TestWhatIsNoWebhookIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{http.MethodGet, "/webhooks/github/prj_hello", 405},
		{http.MethodPut, "/webhooks/github/prj_hello", 405},
		{http.MethodPost, "/webhooks/sourcehut/prj_hello", 404},
		{http.MethodPost, "/webhooks/github", 404},
		{http.MethodPost, "/webhooks/github/", 404},
		{http.MethodPost, "/webhooks/github/prj_hello/more", 404},
		{http.MethodPost, "/webhooks//prj_hello", 404},
	} {
		got := b.send(t, delivery{id: "d", event: "push", body: "{}", method: c.method, path: c.path})
		if got.code != c.want || c.want == 405 && got.header.Get("Allow") != "POST" {
			t.Errorf("%s %s: %d", c.method, c.path, got.code)
		}
	}
}

func TestWithoutItsDatabaseADeliveryIsAskedForAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.store.Close()
	got := b.send(t, delivery{id: "d1", event: "push", body: fixture(t, "push")})
	if got.code != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" || got.Push != "" {
		t.Errorf("answer %+v", got)
	}
}

func TestSlowSenderIsNotWaitedForForEver(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.config.ReadWithin, b.config.MaxDeliveries = 50*time.Millisecond, 1
	server := b.serve(t, b.config)
	body, stall := io.Pipe()
	t.Cleanup(func() { must(t, stall.Close()) })
	req := delivery{id: "slow", event: "push", body: "x"}.request(t, server)
	req.Body, req.ContentLength, req.GetBody = body, 100, nil
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	must(t, err)
	must(t, res.Body.Close())
	if res.StatusCode != http.StatusRequestTimeout {
		t.Errorf("answer %s", res.Status)
	}
	if got := send(t, server, delivery{id: "next", event: "ping", body: "{}"}); got.code != http.StatusAccepted {
		t.Errorf("the next delivery: %+v", got)
	}
}
