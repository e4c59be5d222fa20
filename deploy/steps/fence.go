package steps

import (
	"context"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/pipeops/pipeops/deploy/manifests"
)

// FencedError says that a later grant has the slot, so that this one must not write any more.
type FencedError struct {
	Object        string // "ConfigMap/hello-production-a1b2c3/pipeops-fence-web"
	Ours, Highest int64
}

func (e *FencedError) Error() string {
	return fmt.Sprintf("fencing epoch %d is over: %s has %d", e.Ours, e.Object, e.Highest)
}

const epochKey = "epoch"

// FenceName is the name of the ConfigMap that holds a service's fencing epoch.
func FenceName(service string) string { return "pipeops-fence-" + service }

// Fence makes the namespace, and raises the service's fence to our epoch. Once it returned nil no earlier attempt can
// change the workload any more. Doing it again only looks whether our epoch still stands.
func (s *Steps) Fence(ctx context.Context) error {
	if err := s.namespace(ctx); err != nil {
		return fmt.Errorf("make namespace %s: %w", s.Request.Namespace, err)
	}
	return s.fence(ctx)
}

func (s *Steps) fence(ctx context.Context) error {
	for {
		err := s.raise(ctx)
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			return err
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
	}
}

// raise tries once; a Conflict or AlreadyExists means that somebody else was faster.
func (s *Steps) raise(ctx context.Context) error {
	name := FenceName(s.Request.ServiceName)
	object := "ConfigMap/" + s.Request.Namespace + "/" + name
	maps := s.Client.CoreV1().ConfigMaps(s.Request.Namespace)
	live, err := missing(maps.Get(ctx, name, metav1.GetOptions{}))
	if err != nil {
		return fmt.Errorf("read fence %s: %w", object, err)
	}
	if live == nil {
		if err := s.Effect(ctx); err != nil {
			return err
		}
		fresh := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}
		s.sign(fresh)
		_, err = maps.Create(ctx, fresh, metav1.CreateOptions{FieldManager: manifests.Manager})
		return wrap(err, "create fence "+object)
	}
	if err := s.ours(object, live.Labels); err != nil {
		return err
	}
	highest, err := strconv.ParseInt(live.Data[epochKey], 10, 64)
	if err != nil {
		return fmt.Errorf("fence %s: %w", object, &ForeignError{Object: object, Labels: live.Labels})
	}
	switch {
	case highest > s.Epoch:
		return &FencedError{Object: object, Ours: s.Epoch, Highest: highest}
	case highest == s.Epoch:
		return nil
	}
	if err := s.Effect(ctx); err != nil {
		return err
	}
	s.sign(live)
	_, err = maps.Update(ctx, live, metav1.UpdateOptions{FieldManager: manifests.Manager}) // with the resourceVersion that was read
	return wrap(err, "raise fence "+object)
}

func (s *Steps) sign(m *corev1.ConfigMap) {
	m.Labels = manifests.Labels(s.Request)
	m.Labels[manifests.LabelDeployment] = string(s.Request.Deployment)
	m.Data = map[string]string{epochKey: strconv.FormatInt(s.Epoch, 10), "attempt": string(s.Attempt)}
}

func wrap(err error, what string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// namespace makes the namespace unless it is there with our labels. One without any of our labels is taken over,
// because who runs the cluster may have to make it.
func (s *Steps) namespace(ctx context.Context) error {
	live, err := missing(s.Client.CoreV1().Namespaces().Get(ctx, s.Request.Namespace, metav1.GetOptions{}))
	if err != nil {
		return err
	}
	if live != nil {
		switch live.Labels[manifests.LabelEnvironment] {
		case string(s.Request.Environment):
			return nil
		case "":
		default:
			return &ForeignError{Object: "Namespace/" + live.Name, Labels: live.Labels}
		}
	}
	if err := s.Effect(ctx); err != nil {
		return err
	}
	if _, err := s.Client.CoreV1().Namespaces().Apply(ctx, manifests.Namespace(s.Request), s.applyOptions(false, false)); err != nil {
		return err
	}
	return s.defaultAccount(ctx)
}

const (
	accountPoll = 100 * time.Millisecond
	accountWait = 15 * time.Second // the dry run says what is wrong, if it takes longer
)

// defaultAccount waits for the namespace's default service account: pods are refused without it.
func (s *Steps) defaultAccount(ctx context.Context) error {
	poll := time.NewTicker(accountPoll)
	defer poll.Stop()
	enough := time.NewTimer(accountWait)
	defer enough.Stop()
	for {
		account, err := missing(s.Client.CoreV1().ServiceAccounts(s.Request.Namespace).Get(ctx, "default", metav1.GetOptions{}))
		if err != nil || account != nil {
			return err
		}
		select {
		case <-poll.C:
		case <-enough.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
