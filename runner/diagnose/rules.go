package diagnose

import "github.com/pipeops/pipeops/domain"

// Codes that callers name because they know the cause.
const (
	DockerfileMissing = "DOCKERFILE_MISSING"
	DockerfileOutside = "DOCKERFILE_OUTSIDE"
	DockerfileSyntax  = "DOCKERFILE_SYNTAX"
	DockerfileLarge   = "DOCKERFILE_TOO_LARGE"
	RootDirMissing    = "ROOT_DIR_MISSING"
	SyntaxNotAllowed  = "SYNTAX_NOT_ALLOWED"
	CloneTimeout      = "CLONE_TIMEOUT"
	BuildTimeout      = "BUILD_TIMEOUT"
	PushTimeout       = "PUSH_TIMEOUT"
	ImageGone         = "IMAGE_GONE"
	TagTaken          = "TAG_TAKEN"
)

// rules are tried in order: known programs' complaints before bare exit codes, causes before what follows from them.
// Texts are lower case.
var rules = []rule{
	// Source.
	{
		code: "COMMIT_NOT_FOUND", stage: Source, title: "the commit is gone",
		reason: "Commit {commit} isn't in the repository any more. Most likely {ref} was force-pushed after this push",
		fixes:  []string{"What the branch points to now is built by a new push: " + domain.PushAgain, "If a server hook or mirror drops commits, let it finish before the webhook is sent"},
	},
	{
		code: "CLONE_AUTH", stage: Source, title: "the repository can't be read",
		reason: "The git server refuses the login that this project has, or wants one where there is none",
		fixes:  []string{"Give an access token that may read the repository, in a file of mode 0600: pipeops project set {project} --git-credential-file FILE", "Check that the token hasn't expired and covers this very repository"},
	},
	{
		code: "REPOSITORY_NOT_FOUND", stage: Source, title: "there is no such repository",
		reason: "The git server knows no repository at this address. Private ones look like this too when the login lacks the right to see them",
		fixes:  []string{"Check the address: pipeops project show {project}", "For a private repository give an access token: pipeops project set {project} --git-credential-file FILE"},
	},
	{
		code: "REPOSITORY_URL", stage: Source, title: "the repository's address can't be used",
		reason: "Sources are fetched over https, without a password in the address",
		fixes:  []string{"Change the address to https://host/path: pipeops project set {project} --repo URL", "Give user and token in a file of mode 0600: pipeops project set {project} --git-credential-file FILE"},
	},
	{
		code: "COMMIT_HASH", stage: Source, title: "the push names no commit",
		reason: "A build needs the full hash of a commit", fixes: []string{"The push says nothing that can be built: " + domain.PushAgain},
	},
	{
		code: "SOURCE_TOO_LARGE", stage: Source, title: "the source is too large",
		reason: "The commit has more files or bytes than a build takes",
		fixes:  []string{"Remove generated and binary files from the repository, or keep them in Git LFS or a package registry", "Split the repository"},
	},
	{
		code: "CLONE_NETWORK", stage: Source, title: "the git server can't be reached",
		reason: "It was tried several times, and each time the connection failed",
		fixes:  []string{"Check that the git server is up and that its name resolves on the runner", "Check the runner's proxy and firewall", "Once it answers, " + domain.PushAgain},
	},
	{
		code: CloneTimeout, stage: Source, title: "fetching the source took too long",
		reason: "The commit didn't arrive within the time limit",
		fixes:  []string{"Check the connection between the runner and the git server", "Make the repository smaller: large binary files are the usual cause"},
	},
	{
		code: "CLONE_FAILED", stage: Source, title: "the source can't be fetched",
		reason: "git refused what the server sent, or failed in another way; its own words stand above",
		fixes:  []string{"Try the same by hand: git fetch --depth 1 URL {commit}", "If git complains about broken objects, mend the repository with git fsck"},
	},

	// Dockerfile.
	{
		code: DockerfileMissing, stage: Dockerfile, title: "there is no Dockerfile", said: []string{"failed to read dockerfile: open"},
		reason: "The commit holds no file {dockerfile}. Upper and lower case count",
		fixes:  []string{"Add a Dockerfile at {dockerfile} and push", "If it lies elsewhere, set the service's root directory or Dockerfile", "Check that it was committed: git ls-files"},
	},
	{
		code: RootDirMissing, stage: Dockerfile, title: "there is no such root directory",
		reason: "The commit holds no such folder. Upper and lower case count",
		fixes:  []string{"Set the service's root directory to a folder of the repository", "Check that the folder was committed: git ls-tree -d HEAD"},
	},
	{
		code: DockerfileOutside, stage: Dockerfile, title: "the Dockerfile lies outside the repository",
		reason: "{dockerfile} or the root directory is a symbolic link that leaves the repository",
		fixes:  []string{"Replace the link by the file itself and push"},
	},
	{
		code: DockerfileLarge, stage: Dockerfile, title: "the Dockerfile is too large",
		reason: "A Dockerfile may have 1 MiB", fixes: []string{"Move what it holds into files and COPY them"},
	},
	{
		code: SyntaxNotAllowed, stage: Dockerfile, title: "the Dockerfile wants another builder",
		reason: "Its syntax line names a frontend other than docker/dockerfile. Such an image would run as a program with all that the builder is told",
		fixes:  []string{"Remove the line, or let it say: # syntax=docker/dockerfile:1"},
	},
	{
		code: DockerfileSyntax, title: "the Dockerfile has a mistake", said: []string{"dockerfile parse error", "unknown instruction"},
		reason: "The Dockerfile can't be read; the message names the line and what is wrong with it",
		fixes:  []string{"Mend the line that the message names and push", "Check it before you push: docker build --check ."},
	},

	// What the builder itself complains about.
	{
		code: "COPY_SOURCE_MISSING", stage: Build, title: "COPY finds no such file", said: []string{"failed to calculate checksum … not found", "failed to compute cache key … not found"},
		reason: "A COPY or ADD on line {line} names something that isn't in what the builder was given",
		fixes: []string{
			"Write the path relative to the service's root directory, not to the Dockerfile",
			"Look whether a rule in .dockerignore hides it",
			"Check that it was committed: git ls-files. Files in Git LFS aren't fetched",
			"With --from=STAGE, check that the stage puts it there",
		},
	},
	{
		code: "BASE_IMAGE_PLATFORM", stage: Build, title: "the base image isn't there for this platform", said: []string{"no match for platform in manifest"},
		reason: "The image of the FROM on line {line} doesn't exist for the platform that is built", fixes: []string{"Choose another base image or tag that has this platform"},
	},
	{
		code: "BASE_IMAGE_DENIED", stage: Build, title: "the base image can't be pulled", said: []string{
			"pull access denied", "insufficient_scope", "failed to resolve source metadata … 401", "failed to resolve source metadata … 403", "failed to resolve source metadata … failed to authorize",
		},
		reason: "The registry refuses the image of the FROM on line {line}: it is private, or its name is wrong",
		fixes:  []string{"Check the spelling of the image's name", "Give the runner a login for that registry", "Use a public image, or a mirror that the runner may read"},
	},
	{
		code: "BASE_IMAGE_NOT_FOUND", stage: Build, title: "there is no such base image", said: []string{"failed to resolve source metadata … not found", "manifest unknown"},
		reason: "The registry has no image or tag as the FROM on line {line} says",
		fixes:  []string{"Check name and tag at the registry", "Pin the image by its digest, so that it can't vanish under a tag"},
	},
	{
		code: "REGISTRY_LIMIT", title: "the registry's limit is reached", said: []string{"toomanyrequests", "pull rate limit", "429 too many"},
		reason: "The registry allows only so many requests in a time", fixes: []string{"Wait, then " + domain.PushAgain, "Log the runner in to the registry: limits are higher then", "Use a mirror for base images"},
	},
	{
		code: "BASE_IMAGE_NETWORK", stage: Build, title: "the base image's registry can't be reached", said: []string{"failed to resolve source metadata … dial", "failed to resolve source metadata … timeout", "failed to resolve source metadata … no such host", "failed to resolve source metadata … eof"},
		reason: "The builder got no connection to the registry of the FROM on line {line}",
		fixes:  []string{"Such trouble often passes: " + domain.PushAgain, "Check the network and proxy of the builder", "Use a mirror for base images"},
	},
	{
		code: "NO_SPACE", title: "the builder's disk is full", said: []string{"no space left on device", "disk quota exceeded"},
		reason: "There was no room for what a step wrote, or for the image",
		fixes:  []string{"Old caches are dropped as they age: wait, then " + domain.PushAgain, "Keep large files out with .dockerignore, and clean up in the RUN that makes the mess", "Give the builder a larger disk"},
	},

	// Push.
	{
		code: "PUSH_DENIED", stage: Push, title: "the registry refuses the image", said: []string{"denied", "unauthorized", "authorization", "insufficient_scope", "401", "403", "authentication required"},
		reason: "The runner's login at {registry} may not push to {image}",
		fixes:  []string{"Check the runner's login for {registry}", "Check that it may write to {image}", "Some registries want the repository to be created first"},
	},
	{
		code: "PUSH_REPOSITORY", stage: Push, title: "the registry has no such repository", said: []string{"name unknown", "name_unknown", "repository does not exist", "404"},
		reason: "{registry} doesn't make repositories by itself", fixes: []string{"Create {image} at the registry", "Check the project's registry setting: pipeops project show {project}"},
	},
	{
		code: PushTimeout, stage: Push, title: "the push took too long", said: []string{"took too long"},
		reason: "The image didn't arrive at {registry} within the time limit", fixes: []string{"Make the image smaller: a slim base image, fewer files", "Check the connection between the builder and {registry}"},
	},
	{
		code: "PUSH_NETWORK", stage: Push, title: "the registry can't be reached", said: []string{"dial tcp", "connection", "timeout", "eof", "no such host", "500", "502", "503", "504", "unavailable"},
		reason: "The push was tried several times, and {registry} didn't take it", fixes: []string{"Check that {registry} is up and can be reached from the builder", "Once it can, " + domain.PushAgain},
	},
	{
		code: ImageGone, stage: Push, title: "the pushed image is gone", reason: "{registry} doesn't have the image any more that this build had pushed",
		fixes: []string{"A new build makes a new image: " + domain.PushAgain, "Look whether something deletes images at {registry}"},
	},
	{
		code: TagTaken, stage: Push, title: "the tags are taken", reason: "Both tags of this build name other images at {registry}, and tags are never moved",
		fixes: []string{"Look who else pushes to {image}", "Push a new commit: " + domain.PushAgain},
	},
	{
		code: BuildTimeout, title: "the build took too long", reason: "The steps didn't end within the time limit",
		fixes: []string{"Look in the log for the step that takes the time", "Copy what seldom changes, such as lists of dependencies, before the source: it is cached then", "Use cache mounts for package managers: RUN --mount=type=cache"},
	},

	// What programs in RUN steps say.
	{
		code: "JS_HEAP", stage: Build, title: "Node.js ran out of memory", said: []string{"javascript heap out of memory"},
		reason: "The heap of Node.js has a limit of its own",
		fixes:  []string{"Raise it: ENV NODE_OPTIONS=--max-old-space-size=4096", "Switch source maps off in the build", "Give the builder more memory"},
	},
	{
		code: "OUT_OF_MEMORY", stage: Build, title: "a step was killed: out of memory", exits: []int{137}, reason: "The program on line {line} was killed (exit code 137), which the system does when memory runs out",
		fixes: []string{"Let the step do less at once: make -j2, GOFLAGS=-p=2, gradle --max-workers=2", "Give the builder more memory", "Split the step"},
	},
	{
		code: "OUT_OF_MEMORY", stage: Build, title: "a step was killed: out of memory", said: []string{"signal: killed", "cannot allocate memory", "out of memory"}, reason: "A program of line {line} was killed or got no memory",
		fixes: []string{"Let the step do less at once: make -j2, GOFLAGS=-p=2, gradle --max-workers=2", "Give the builder more memory", "Split the step"},
	},
	{
		code: "NODE_LOCK", stage: Build, title: "lock file and package.json differ", said: []string{"eusage … npm ci", "npm ci … can only install packages when", "err_pnpm_outdated_lockfile", "yn0028", "frozen-lockfile"},
		reason: "The install is strict, and the lock file isn't what package.json asks for",
		fixes:  []string{"Run the install on your machine and commit the lock file", "Use the same version of the package manager there and in the image", "Check that the lock file isn't in .dockerignore"},
	},
	{
		code: "NODE_RESOLVE", stage: Build, title: "npm can't resolve the dependencies", said: []string{"eresolve"},
		reason: "Two packages want versions of a third that exclude each other", fixes: []string{"Bring the packages that the log names to versions that agree", "If you know that it works anyway: npm ci --legacy-peer-deps"},
	},
	{
		code: "NODE_SCRIPT", stage: Build, title: "package.json has no such script", said: []string{"missing script:", "err_pnpm_no_script", "couldn't find a script named"},
		reason: "The step runs a script that package.json doesn't have", fixes: []string{"Add the script to package.json, or change the RUN on line {line}", "In a repository of several packages, check the service's root directory"},
	},
	{
		code: "TOOL_VERSION", stage: Build, title: "a tool has the wrong version", said: []string{
			"unsupported engine", "ebadengine", "requires a different python", "requires node", "requires go >=", "class file version", "release version … not supported", "requires-python",
		},
		reason: "The code asks for another version of the language than the base image has", fixes: []string{"Change the base image in FROM to the version that the log asks for", "Or change the version that the code asks for"},
	},
	{
		code: "PYTHON_DEPENDENCY", stage: Build, title: "pip can't install a package", said: []string{"no matching distribution found", "failed building wheel", "pg_config executable not found", "could not build wheels", "failed to build installable wheels"},
		reason: "There is no ready-made package for this version of Python and system, and what is needed to build it is missing, or its name or version is wrong",
		fixes:  []string{"Check name and version of the package that the log names", "Use a Python version for which it has wheels", "Install the compiler and libraries before: apt-get install build-essential libpq-dev", "Use a binary variant, such as psycopg2-binary"},
	},
	{
		code: "GO_DEPENDENCY", stage: Build, title: "Go finds no such module or package", said: []string{
			"no required module provides package", "missing go.sum entry", "updates to go.mod needed", "go.mod file not found", "unknown revision", "reading … 404 not found", "reading … 410 gone",
		},
		reason: "go.mod or go.sum don't list what the code imports, or the module can't be had", fixes: []string{"Run go mod tidy and commit go.mod and go.sum", "Check that go.mod and go.sum are copied before go mod download or go build", "For private modules, give the build a proxy that has them: ARG GOPROXY"},
	},
	{
		code: "GO_COMPILE", stage: Build, title: "the code doesn't compile", exits: []int{1, 2}, said: []string{".go:"},
		reason: "The Go compiler refuses the code; the log names file and line", fixes: []string{"Mend what the log names, check with go build ./... and push", "Check that all needed files are committed and copied"},
	},
	{
		code: "PRIVATE_DEPENDENCY", stage: Build, title: "a private dependency can't be fetched", said: []string{"could not read username", "permission denied (publickey)", "terminal prompts disabled", "npm err! code e401", "npm error code e401", "e403"},
		reason: "A step fetches something that wants a login, and the build has none", fixes: []string{"Publish the dependency where the build may read it", "Vendor it into the repository"},
	},
	{
		code: "MODULE_MISSING", stage: Build, title: "a dependency isn't there", said: []string{"cannot find module", "modulenotfounderror", "module not found", "ts2307", "err_module_not_found"},
		reason: "The code imports something that isn't installed in the image", fixes: []string{"Add it to the list of dependencies and commit that", "Check upper and lower case in the import's path: Linux tells them apart", "If it is a development dependency, install those too in the build stage"},
	},
	{
		code: "NETWORK", stage: Build, title: "a step has no connection", said: []string{
			"enotfound", "could not resolve host", "temporary failure in name resolution", "temporary failure resolving", "econnreset", "econnrefused", "etimedout", "i/o timeout", "connection refused", "network is unreachable",
			"newconnectionerror", "tls handshake timeout", "no such host", "502 bad gateway", "503 service unavailable",
		},
		reason: "The step asked a server that didn't answer", fixes: []string{"Such trouble often passes: " + domain.PushAgain, "Check whether builds may reach that server, and through which proxy", "Use a mirror of the package registry"},
	},
	{
		code: "ARCHITECTURE", stage: Build, title: "a program is made for another processor", said: []string{"exec format error"},
		reason: "The step runs a program of another architecture than the builder's", fixes: []string{"Compile for the builder's platform, or take the tool's build for it", "Check that scripts begin with #! and an interpreter"},
	},
	{
		code: "LINE_ENDINGS", stage: Build, title: "a script has Windows line endings", said: []string{"bad interpreter … ^m", "\\r: no such file", "$'\\r'", "/bin/sh^m"},
		reason: "The script's first line ends in a carriage return, so its interpreter isn't found", fixes: []string{"Commit it with Unix line endings, and add to .gitattributes: *.sh text eol=lf"},
	},
	{
		code: "COMMAND_NOT_FOUND", stage: Build, title: "a step's command isn't in the image", exits: []int{127}, reason: "The shell finds no program of the name that the RUN on line {line} calls (exit code 127)",
		fixes: []string{"Install the program in that stage before it is used, or choose a base image that has it", "Check the spelling, and for scripts their path and line endings"},
	},
	{
		code: "NO_SHELL", stage: Build, title: "the image has no such program", said: []string{"executable file not found in $path", "no such file or directory: unknown", "stat /bin/sh: no such file"},
		reason: "The RUN on line {line} needs a program, perhaps the shell itself, that the base image doesn't have", fixes: []string{"Do this step in an earlier stage and COPY --from the result", "Choose a base image that has the program"},
	},
	{
		code: "NOT_EXECUTABLE", stage: Build, title: "a step's command can't be run", exits: []int{126}, reason: "The file that the RUN on line {line} calls isn't executable (exit code 126)",
		fixes: []string{"Make it executable and commit that: git update-index --chmod=+x FILE", "Or call it through its interpreter: sh FILE"},
	},
	{
		code: "VARIABLE_MISSING", stage: Build, title: "a variable is missing in the build", said: []string{"invalid environment variables", "environment variable … is not set", "environment variable … required", "missing required environment variable"},
		reason: "The step wants a variable that only the running program has", fixes: []string{"Read it when the program starts, not when it is built", "If the build needs it: set it as a build arg of the service and declare it with ARG in that stage"},
	},
	{
		code: "STEP_FAILED", stage: Build, title: "a step ended with exit code {exit}", exits: []int{}, reason: "The command on line {line} of {dockerfile} ended with exit code {exit}; why stands in its own output",
		fixes: []string{"Read the last lines of the log, and mend what they name", "Try the same on your machine: docker build --no-cache --progress=plain ."},
	},
}

// unknown is for what no rule fits.
var unknown = rule{
	code: "BUILD_FAILED", title: "{message}", reason: "PipeOps doesn't know this one; the message is the tool's own",
	fixes: []string{"Read the message and the log", "Try the same on your machine: docker build --no-cache --progress=plain ."},
}
