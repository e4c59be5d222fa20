package local

import "context"

// Address gives the loopback address, host:port, that is kept in this home under a name: chosen at the first call,
// the same for ever after.
func Address(ctx context.Context, c Config, name string) (string, error) {
	c, err := c.withDefaults()
	if err != nil {
		return "", err
	}
	port, err := c.port(ctx, name)
	if err != nil {
		return "", err
	}
	return loopback(port), nil
}
