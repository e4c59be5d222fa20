package testenv_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/internal/testenv"
)

func TestPostgresGivesEachTestAnEmptyDatabaseOfItsOwn(t *testing.T) {
	t.Parallel()
	for range 3 {
		url := testenv.Postgres(t)
		connection, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := connection.Exec(t.Context(), "CREATE TABLE only_here ()"); err != nil {
			t.Error(err)
		}
		if err := connection.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
