package runner

import (
	"errors"
	"path"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/runner/build"
	"github.com/pipeops/pipeops/runner/diagnose"
	"github.com/pipeops/pipeops/runner/registry"
	"github.com/pipeops/pipeops/runner/source"
)

// diagnose says why the build failed; false when it isn't the build's fault, and may succeed elsewhere.
func (j *job) diagnose(err error) (domain.Diagnosis, bool) {
	f := diagnose.Failure{
		Message: j.mask(err.Error()), Build: j.request.Build, Project: j.request.ProjectName, Image: j.request.Image,
		Dockerfile: path.Join(j.request.Plan.RootDir, j.request.Plan.Dockerfile), Commit: j.request.Commit, Ref: j.request.Ref,
	}
	var (
		left    *leftError
		fetch   *source.Error
		file    *dockerfileError
		built   *build.Error
		stopped *build.StoppedError
		refused *registry.Error
		taken   *registry.TakenError
	)
	switch {
	case errors.As(err, &left):
		return domain.Diagnosis{}, false
	case errors.Is(err, errCloneTimeout):
		f.Stage, f.Code = diagnose.Source, diagnose.CloneTimeout
	case errors.Is(err, errBuildTimeout):
		f.Stage, f.Code = diagnose.Build, diagnose.BuildTimeout
		if errors.As(err, &stopped) {
			f.Step, f.Log = stopped.Step, stopped.Tail
		}
	case errors.As(err, &fetch):
		f.Stage, f.Code = diagnose.Source, fetch.Code
	case errors.As(err, &file):
		f.Stage, f.Code, f.Line = diagnose.Dockerfile, file.code, file.line
	case errors.As(err, &built):
		f.Stage, f.Step, f.Line, f.ExitCode, f.Log = string(built.Stage), built.Step, built.Line, built.ExitCode, built.Tail
	case errors.As(err, &taken):
		f.Stage, f.Code = diagnose.Push, diagnose.TagTaken
	case errors.As(err, &refused):
		f.Stage = diagnose.Push
		if refused.Status == 404 {
			f.Code = diagnose.ImageGone
		}
	default:
		return domain.Diagnosis{}, false
	}
	return diagnose.Explain(f), true
}
