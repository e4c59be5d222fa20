package projections

import "slices"

// NewVersion gives a projector of another version of one projection, as another binary would have it.
func NewVersion(config Config, name string, version int) (*Projector, error) {
	p, err := New(config)
	if err != nil {
		return nil, err
	}
	p.models = slices.Clone(p.models)
	for i, model := range p.models {
		if model.name == name {
			other := *model
			other.version = version
			p.models[i] = &other
		}
	}
	return p, nil
}
