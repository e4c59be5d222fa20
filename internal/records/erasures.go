package records

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/pipeops/pipeops/internal/seal"
)

// Erasures forgets persons: the keys of their fields in events, and what was delivered about them.
type Erasures struct {
	keys       *seal.Keyring
	subjects   *seal.Subjects
	deliveries *Deliveries
}

// NewErasures gives what forgets.
func NewErasures(keys *seal.Keyring, subjects *seal.Subjects, deliveries *Deliveries) *Erasures {
	return &Erasures{keys, subjects, deliveries}
}

// Erasure is what was forgotten.
type Erasure struct {
	Subject    string    // opaque id
	Keys       int       // how many keys the person has had, all gone; 0: nothing is known of them
	Since      time.Time // when the first one was made: backups from then to now still hold it
	Deliveries int       // raw deliveries that told of the person and are gone with them
}

// Erase forgets a person, given as their opaque id or as "<provider>/<login or e-mail>", for ever. A repeat goes on
// where an earlier one was interrupted.
func (e *Erasures) Erase(ctx context.Context, person string) (out Erasure, err error) {
	out.Subject = person
	if provider, name, named := strings.Cut(person, "/"); named {
		if strings.Contains(name, "@") { // as the intakes take e-mails
			name = strings.ToLower(name)
		}
		out.Subject = e.keys.Actor(provider, name)
	}
	if out.Keys, out.Since, err = e.subjects.Erase(ctx, out.Subject); err == nil {
		out.Deliveries, err = e.deliveries.erase(ctx, out.Subject)
	}
	if err != nil {
		return out, fmt.Errorf("erase subject %s: %w", out.Subject, err)
	}
	return out, nil
}
