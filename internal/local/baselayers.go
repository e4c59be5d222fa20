package local

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// debianLayer is a minimal Debian 12 with these packages on top.
func debianLayer(packages ...string) layerFile {
	return layerFile{
		name: "debian-bookworm-" + runtime.GOARCH + "-" + strings.Join(packages, "-"),
		make: func(ctx context.Context, c Config, path string) error {
			program, err := findProgram("mmdebstrap")
			if err != nil {
				return &MissingError{What: "mmdebstrap", Fix: "apt-get install --no-install-recommends mmdebstrap"}
			}
			c.Progress("making a Debian base image with " + strings.Join(packages, ", ") + " (half a minute, once)")
			command := exec.CommandContext(ctx, program, "--variant=minbase", "--include="+strings.Join(packages, ","), //nolint:gosec // found by us
				"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
				"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright",
				"--format=tar", "bookworm", "-")
			var complaints bytes.Buffer
			command.Stderr = &complaints
			err = writeGzip(path, func(out io.Writer) error { command.Stdout = out; return command.Run() })
			if err != nil {
				return fmt.Errorf("mmdebstrap: %w\n%s", err, complaints.String())
			}
			return nil
		},
	}
}

// golangImage has the Go of this machine: the image that Dockerfiles of the same major.minor ask for.
func golangImage(ctx context.Context) (baseImage, error) {
	output, err := exec.CommandContext(ctx, "go", "env", "-json", "GOROOT", "GOVERSION").Output()
	if err != nil {
		return baseImage{}, &MissingError{What: "Go, of which the image is made,", Fix: "install it from https://go.dev/dl"}
	}
	var host struct {
		Root    string `json:"GOROOT"`
		Version string `json:"GOVERSION"`
	}
	if err := json.Unmarshal(output, &host); err != nil {
		return baseImage{}, err
	}
	minor := regexp.MustCompile(`^go(\d+\.\d+)`).FindStringSubmatch(host.Version)
	if minor == nil {
		return baseImage{}, fmt.Errorf("this machine's Go has the version %s, which isn't a release", host.Version)
	}
	settings, err := ownGoSettings(ctx)
	if err != nil {
		return baseImage{}, err
	}
	layer := layerFile{
		name: host.Version + "-" + runtime.GOARCH,
		make: func(_ context.Context, c Config, path string) error {
			c.Progress("packing " + host.Version + " for the golang base image")
			return writeGzip(path, func(out io.Writer) error { return packGo(out, host.Root) })
		},
	}
	return baseImage{
		names:  []string{"golang:" + minor[1], "golang:" + strings.TrimPrefix(host.Version, "go"), "golang:" + minor[1] + "-bookworm"},
		layers: []layerFile{debianLayer("ca-certificates", "git"), layer},
		config: v1.Config{
			Cmd: []string{"bash"}, WorkingDir: "/go",
			Env: append([]string{
				"PATH=/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
				"GOPATH=/go", "GOTOOLCHAIN=local", "GOLANG_VERSION=" + strings.TrimPrefix(host.Version, "go"),
			}, settings...),
		},
	}, nil
}

// ownGoSettings are those of this machine that decide where modules come from, if they aren't Go's own. One that
// holds a password is left out: images show their environment to everybody.
func ownGoSettings(ctx context.Context) ([]string, error) {
	output, err := exec.CommandContext(ctx, "go", "env", "-changed", "-json", "GOPROXY", "GOSUMDB", "GONOSUMDB", "GONOPROXY", "GOPRIVATE", "GOFLAGS", "GOINSECURE").Output()
	if err != nil {
		return nil, fmt.Errorf("ask go env: %w", err)
	}
	changed := map[string]string{}
	if err := json.Unmarshal(output, &changed); err != nil {
		return nil, err
	}
	var settings []string
	for _, key := range []string{"GOPROXY", "GOSUMDB", "GONOSUMDB", "GONOPROXY", "GOPRIVATE", "GOFLAGS", "GOINSECURE"} {
		if value := changed[key]; value != "" && !holdsPassword(value) {
			settings = append(settings, key+"="+value)
		}
	}
	return settings, nil
}

func holdsPassword(list string) bool {
	for _, part := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == '|' || r == ' ' }) {
		if address, err := url.Parse(part); err != nil || address.User != nil {
			return true
		}
	}
	return false
}

func packGo(out io.Writer, root string) error {
	archive := tar.NewWriter(out)
	folders(archive, "go", "go/bin", "go/src", "go/pkg", "usr", "usr/local")
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		switch relative {
		case "test", "api", "doc", "misc", filepath.Join("pkg", "obj"): // no build needs them
			return fs.SkipDir
		}
		return packFile(archive, file, path.Join("usr/local/go", filepath.ToSlash(relative)), entry)
	})
	return errors.Join(err, archive.Close())
}

func packFile(archive *tar.Writer, file, packed string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if err != nil {
		return err
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(file); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	header.Name, header.Uid, header.Gid, header.Uname, header.Gname = packed, 0, 0, "", ""
	if err := archive.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
		return err
	}
	content, err := os.Open(file)
	if err != nil {
		return err
	}
	defer content.Close() //nolint:errcheck // only read
	_, err = io.Copy(archive, content)
	return err
}

// busyboxLayer is the static busybox of this machine, with all its names in /bin.
func busyboxLayer() (layerFile, error) {
	file, err := findProgram("busybox")
	if err != nil {
		return layerFile{}, &MissingError{What: "busybox", Fix: "apt-get install --no-install-recommends busybox-static"}
	}
	program, err := os.ReadFile(file)
	if err != nil {
		return layerFile{}, err
	}
	return layerFile{
		name: fmt.Sprintf("busybox-%s-%.6x", runtime.GOARCH, sha256.Sum256(program)),
		make: func(ctx context.Context, _ Config, path string) error {
			names, err := exec.CommandContext(ctx, file, "--list").Output()
			if err != nil {
				return err
			}
			return writeGzip(path, func(out io.Writer) error { return packBusybox(out, program, strings.Fields(string(names))) })
		},
	}, nil
}

func packBusybox(out io.Writer, program []byte, names []string) error {
	archive := tar.NewWriter(out)
	folders(archive, "bin", "etc", "root", "usr", "usr/bin", "var")
	problems := []error{
		archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777, ModTime: packedAt}),
		packContent(archive, "bin/busybox", program, 0o755),
		packContent(archive, "etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"), 0o644),
		packContent(archive, "etc/group", []byte("root:x:0:\nnogroup:x:65534:\n"), 0o644),
		archive.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "usr/bin/env", Linkname: "/bin/busybox", Mode: 0o777, ModTime: packedAt}),
	}
	for _, name := range names {
		if name != "busybox" {
			problems = append(problems, archive.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: "bin/" + name, Linkname: "bin/busybox", Mode: 0o755, ModTime: packedAt}))
		}
	}
	return errors.Join(append(problems, archive.Close())...)
}

// certificatesLayer puts this machine's CA bundle where programs on Debian, and Go, look for it.
func certificatesLayer(bundle []byte) layerFile {
	return layerFile{
		name: fmt.Sprintf("certificates-%.6x", sha256.Sum256(bundle)),
		make: func(_ context.Context, _ Config, path string) error {
			return writeGzip(path, func(out io.Writer) error {
				archive := tar.NewWriter(out)
				folders(archive, "etc", "etc/ssl", "etc/ssl/certs")
				return errors.Join(packContent(archive, "etc/ssl/certs/ca-certificates.crt", bundle, 0o644), archive.Close())
			})
		},
	}
}

// packedAt is the time of packed folders and small files: the same content gives the same layer.
var packedAt = time.Unix(0, 0).UTC()

// folders writes folder entries; a failure shows at the archive's next write.
func folders(archive *tar.Writer, paths ...string) {
	for _, path := range paths {
		_ = archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: path + "/", Mode: 0o755, ModTime: packedAt})
	}
}

func packContent(archive *tar.Writer, path string, content []byte, mode int64) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: mode, Size: int64(len(content)), ModTime: packedAt}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err := archive.Write(content)
	return err
}

func writeGzip(path string, fill func(io.Writer) error) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	compressed, err := gzip.NewWriterLevel(file, gzip.BestSpeed)
	if err != nil {
		return err
	}
	return errors.Join(fill(compressed), compressed.Close(), file.Close())
}
