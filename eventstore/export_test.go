package eventstore

// Queued says how many appends wait for the one in flight.
func (s *Store) Queued() int {
	s.committer.mu.Lock()
	defer s.committer.mu.Unlock()
	return len(s.committer.queue)
}

// RingBytes says how much the hub's ring holds.
func (s *Store) RingBytes() int {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	size := 0
	for _, e := range s.hub.ring[:cap(s.hub.ring)] {
		size += len(e.Body)
	}
	return size
}

// Waiting says how many subscribers have seen all there is, and wait.
func (s *Store) Waiting() int {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	all := map[*waiter]bool{}
	for _, waiters := range s.hub.waiting {
		for w := range waiters {
			all[w] = true
		}
	}
	return len(all)
}

// Careful says how many batches are still sent with look-ups, because one wasn't what it was taken for.
func (s *Store) Careful() int { return s.careful(func(int) int { return 0 }) }

// Trust sends the next batch without look-ups again, where it may.
func (s *Store) Trust() { s.careful(func(now int) int { return -now }) }

func (s *Store) careful(change func(now int) int) int {
	s.committer.turn <- struct{}{}
	defer func() { <-s.committer.turn }()
	now := s.committer.versions.careful
	s.committer.versions.careful += change(now)
	return now
}
