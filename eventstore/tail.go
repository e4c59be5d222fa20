package eventstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/pipeops/pipeops/domain"
)

// Run follows the log and feeds Subscribe and Wait, which stand still without it, and keeps the index of filtered reading. One Run at a time. It heals every
// loss of the database by itself, and returns nil when ctx has ended.
func (s *Store) Run(ctx context.Context) error {
	var group errgroup.Group
	group.Go(func() error { s.follow(ctx); return nil })
	group.Go(func() error { s.listen(ctx); return nil })
	group.Go(func() error { s.keepIndex(ctx); return nil })
	return group.Wait()
}

// readPause is between two reads of what is new: while much is appended, one that brings the events of many appends costs
// little more than one that brings the few of one.
const readPause = 2 * time.Millisecond

// follow reads what is new whenever it is poked, and at each tick.
func (s *Store) follow(ctx context.Context) {
	tick := time.NewTicker(s.config.PollInterval)
	defer tick.Stop()
	broken := false
	for {
		began := time.Now()
		err := s.catchUp(ctx)
		if context.Cause(ctx) == nil && (err != nil) != broken {
			if broken = err != nil; broken {
				s.config.Log.WarnContext(ctx, "following the log is interrupted", "err", err)
			} else {
				s.config.Log.InfoContext(ctx, "following the log again", "position", s.hub.view().head.Position)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.hub.tellIdle()
		case <-s.hub.poked:
			pause(ctx, readPause-time.Since(began))
		}
	}
}

// catchUp publishes all that follows the hub's head.
func (s *Store) catchUp(ctx context.Context) error {
	now := s.hub.view()
	if !now.following {
		head, err := s.Head(ctx)
		if err == nil {
			s.hub.place(head)
		}
		return err
	}
	for after, more := now.head, true; more; {
		var events []domain.Recorded
		var err error
		if events, more, err = s.page(ctx, after.Position, 0, Filter{}, pageEvents); err != nil {
			return err
		}
		if len(events) == 0 || events[0].Cursor.LogEpoch != after.LogEpoch {
			if went, err := s.wentBack(ctx, after); went || err != nil {
				return err
			}
		}
		for i, e := range events {
			if want := after.Position + int64(i) + 1; e.Cursor.Position != want {
				return fmt.Errorf("the log has a gap: position %d is followed by %d", want-1, e.Cursor.Position)
			}
		}
		if len(events) > 0 {
			s.hub.publish(events)
			after = events[len(events)-1].Cursor
		}
	}
	return nil
}

// wentBack says whether the log is not any more what the hub has seen of it; then the hub begins anew at its head.
func (s *Store) wentBack(ctx context.Context, seen domain.Cursor) (bool, error) {
	err := s.Check(ctx, seen)
	if !isGone(err) {
		return false, err
	}
	head, headErr := s.Head(ctx)
	if headErr != nil {
		return false, headErr
	}
	s.config.Log.WarnContext(ctx, "the log has gone back", "position", head.Position, "err", err)
	s.hub.place(head)
	return true, nil
}

// isGone says whether err is about a cursor that the log does not hold any more.
func isGone(err error) bool {
	var forked *LogForkedError
	var ahead *CursorAheadError
	return errors.As(err, &forked) || errors.As(err, &ahead)
}

// isOutage says whether the database may well answer later.
func isOutage(err error) bool {
	var refused *pgconn.PgError
	return !isGone(err) && (!errors.As(err, &refused) || isPassing(err))
}

// listen pokes the tail when another process has appended.
func (s *Store) listen(ctx context.Context) {
	for context.Cause(ctx) == nil {
		err := s.listenOnce(ctx)
		if context.Cause(ctx) == nil {
			s.config.Log.WarnContext(ctx, "listening for new events is interrupted: polling until it is back", "err", err)
		}
		pause(ctx, s.config.PollInterval)
	}
}

func (s *Store) listenOnce(ctx context.Context) error {
	conn, err := pgx.ConnectConfig(ctx, s.pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // it is lost, or nothing is in flight
	if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
		return err
	}
	signal(s.hub.poked) // listen first, then read: what came in between is found
	for {
		hint, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		position, err := strconv.ParseInt(hint.Payload, 10, 64)
		if err != nil || position > s.hub.view().head.Position {
			signal(s.hub.poked)
		}
	}
}
